"""Send a model's folder, with the records of its run, to a URL such as ``s3://bucket/my-model``, and get it back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from ..core import bundle
from ..core.errors import BundleError
from ..core.storage import Storage
from ..sources.base import locate
from . import signing


class Copied(NamedTuple):
    """What was sent or brought: the names of the files, and their size together."""

    files: tuple[str, ...]
    size_bytes: int


def send(folder: str | Path, url: str, *, overwrite: bool = False) -> Copied:
    """Put a model's folder at a URL; what an earlier call that broke off has sent is not sent again.

    Raises:
        BundleError: this is no model, it is unsafe, or files of it were changed since it was saved.
        UsageError: something is there that may not be replaced, or there are no credentials, or no such bucket.
        RemoteError: it could not be written, and does not count.
    """
    folder = Path(folder).expanduser()
    bundle.check_folder(folder)
    bundle.verify(folder)
    storage = Storage(url, shown=True)
    storage.check_free(overwrite=overwrite)
    storage.put("", {"": folder})
    return _copied(folder)


def bring(url: str, output: str | Path, *, key: str | Path | None = None, overwrite: bool = False) -> Copied:
    """Write the folder that lies at a URL; it takes its name when it is whole, a model, and signed if ``key`` is given.

    Raises:
        UsageError: the output exists, or there is no model.
        BundleError: what is there is damaged, unsafe, not whole, or not signed with the key.
        RemoteError: it could not be read.
    """

    def fill(fresh: Path) -> None:
        shutil.copytree(locate(url).path, fresh, dirs_exist_ok=True)
        try:
            if key is not None:
                signing.verify(fresh, key)
            bundle.verify(fresh)
        except BundleError as error:  # the folder has no name yet that tells a user anything
            raise BundleError(error.message.replace(str(fresh), url), hint=error.hint) from error

    return _copied(bundle.write_folder(Path(output).expanduser(), fill, overwrite=overwrite))


def _copied(folder: Path) -> Copied:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return Copied(
        tuple(path.relative_to(folder).as_posix() for path in files), sum(path.stat().st_size for path in files)
    )
