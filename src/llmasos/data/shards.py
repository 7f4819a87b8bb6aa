"""Where the rows of a source lie: one file or several, on this machine or behind a URL.

Several files of one kind (a folder, a glob) are read one after the other, in the order of their names, as if they were
one. What is behind a URL is read through fsspec as it comes, and never laid on this machine's disk.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..core.errors import DataError
from ..core.storage import is_url, opened, reaching

_MARKS = "*?["


@dataclass(frozen=True)
class Remote:
    """A file behind a URL, with as much of ``pathlib.Path`` as reading takes."""

    fs: Any
    path: str
    size: int

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def suffixes(self) -> list[str]:
        """The endings of the name, each with its dot."""
        return PurePosixPath(self.path).suffixes

    def open(self, mode: str = "rb") -> IO[bytes]:
        """Open the file to read bytes.

        Raises:
            RemoteError: it cannot be opened.
        """
        with reaching(str(self)):
            return self.fs.open(self.path, mode)  # type: ignore[no-any-return]

    def __str__(self) -> str:
        return str(self.fs.unstrip_protocol(self.path))


File = Path | Remote


def absolute(source: str | Path) -> str:
    """Return a path as other machines know it; a URL as it is."""
    return str(source) if is_url(source) else str(Path(source).expanduser().absolute())


def files_of(source: str | Path, endings: Sequence[str]) -> list[File]:
    """Return the files that a path, a folder, a glob or a URL names, in the order of their names.

    Args:
        source: what the user gave.
        endings: names of data files end like this; of a folder, other files are left out.

    Raises:
        DataError: a folder or glob without such files.
        UsageError: no such kind of URL.
        MissingExtraError: the package for this kind of URL is not installed.
        RemoteError: what is behind the URL cannot be listed.
    """
    if isinstance(source, str) and is_url(source):
        return _behind(source, endings)
    path = Path(source).expanduser()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError:  # a text given as a path
        return [path]
    if is_folder:
        inside = sorted(item for item in path.iterdir() if _is_data(item.name, endings) and item.is_file())
        return list(inside) or _none(path, "is a folder without data files", endings)
    if not exists and any(mark in str(path) for mark in _MARKS):
        found = sorted(Path(item) for item in glob.glob(str(path), recursive=True) if Path(item).is_file())
        return list(found) or _none(path, "matches no file", endings)
    return [path]


def stamp(file: File) -> tuple[str, int, Any]:
    """Return where a file is, its size, and what changes with its content."""
    if isinstance(file, Remote):
        return str(file), file.size, file.fs.ukey(file.path)
    state = file.stat()
    return str(file.resolve()), state.st_size, state.st_mtime_ns


def _behind(url: str, endings: Sequence[str]) -> list[File]:
    fs, path = opened(url)
    try:
        with reaching(url):
            if any(mark in path for mark in _MARKS):
                paths = [item for item in fs.glob(path) if not fs.isdir(item)]
            elif fs.isdir(path):
                paths = [item for item in fs.ls(path, detail=False) if _is_data(PurePosixPath(item).name, endings)]
            else:
                paths = [path]
            found: list[File] = [Remote(fs, item, int(fs.info(item)["size"] or 0)) for item in sorted(paths)]
    except FileNotFoundError as error:
        raise DataError(f"no such file: {url}", hint="is the name right, and may you read it?") from error
    return found or _none(url, "names no data file", endings)


def _is_data(name: str, endings: Sequence[str]) -> bool:
    return not name.startswith((".", "_")) and name.lower().endswith(tuple(endings))


def _none(source: str | Path, what: str, endings: Sequence[str]) -> list[File]:
    raise DataError(f"{source} {what}", hint=f"names of data files end in {', '.join(endings)}, each also with .gz")
