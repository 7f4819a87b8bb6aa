"""Models behind a URL: ``s3://``, ``gs://``, ``az://``, ``file://``, whatever fsspec opens with its own credentials.

A folder that this project wrote says what is in it, with the digest of each file; of another one only files of known,
harmless kinds are read. What was read stays in the project's own cache, under a name that changes with its content, so
that the next call reads little and a new model behind the same URL is a new one here. A transfer that broke off goes on
where it was.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import bundle
from ..core.environment import home
from ..core.errors import BundleError, UsageError
from ..core.storage import UNFINISHED, Storage, is_url
from .base import Located, refuse_revision

_SMALL = re.compile(r"(additional_chat_templates/)?[^/]+\.(json|txt|model|jinja)")
_WEIGHTS = re.compile(r"[^/]+\.safetensors")


class Remote:
    """Any URL."""

    order = 15

    def matches(self, ref: str) -> bool:
        """Say whether the reference is a URL, but for a web page's: there no folder can be listed."""
        return is_url(ref) and not ref.startswith(("http://", "https://"))

    def fetch(self, ref: str, *, revision: str | None, cache_dir: Path | None, weights: bool = True) -> Located:
        """Copy the model to the cache, or find it there, and check it; see ``Source.fetch``."""
        refuse_revision(ref, revision)
        storage = Storage(ref, shown=True)
        files = _files(storage)
        if not {"config.json", "adapter_config.json"} & set(files):
            raise UsageError(f"{ref} holds no model: it has no config.json", hint="give the URL of the model's folder")
        if not weights:
            files = {name: told for name, told in files.items() if _SMALL.fullmatch(name)}
        place = (cache_dir or home() / "storage") / _name(storage.url, files)
        if not _is_whole(place, files):
            from huggingface_hub.utils import WeakFileLock

            (locks := place.parent / ".locks").mkdir(parents=True, exist_ok=True)
            with WeakFileLock(locks / place.name):
                if not _is_whole(place, files):  # another process may have been at it
                    storage.bring(files, place)
        bundle.check_folder(place, weights=weights)
        return Located(place, ref, None, "storage")


def _files(storage: Storage) -> dict[str, dict[str, Any]]:
    """Return the files of a model, by what its own list says of each, or by their sizes."""
    if (listed := storage.manifest("")) is not None:
        return listed
    sizes = storage.sizes()
    if UNFINISHED in sizes:
        raise BundleError(f"{storage.url} is not whole: a copy to it goes on, or broke off",
                          hint="wait for it, or copy the model again: it goes on where it was")  # fmt: skip
    if bundle.MANIFEST not in sizes:
        known = (name for name in sizes if _SMALL.fullmatch(name) or _WEIGHTS.fullmatch(name))
        return {name: {"bytes": sizes[name]} for name in known}
    raw = storage.read(bundle.MANIFEST)
    try:
        digests = dict(json.loads(raw)["files"])
    except (ValueError, LookupError, TypeError) as error:
        raise BundleError(f"{storage.url}/{bundle.MANIFEST} is damaged", hint="copy the model again") from error
    if missing := [name for name in digests if name not in sizes]:
        raise BundleError(f"{storage.url} lacks {', '.join(missing)}", hint="copy the model again")
    out: dict[str, dict[str, Any]] = {name: {"bytes": sizes[name], "sha256": digests[name]} for name in digests}
    return out | {bundle.MANIFEST: {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}}


def _name(url: str, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name of a folder for what a URL holds now."""
    content = hashlib.sha256(json.dumps([url, files], sort_keys=True).encode()).hexdigest()
    called = re.sub(r"[^A-Za-z0-9._-]+", "-", url.rpartition("/")[2])[:40]
    return f"{called}-{content[:16]}"


def _is_whole(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(
        (path := folder / name).is_file() and path.stat().st_size == told["bytes"] for name, told in files.items()
    )


PLUGIN = Remote()
