"""Files and folders read as documents. What cannot be read is named, skipped and counted, and stops nothing."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..core import plugins
from ..core.errors import DataError, UsageError
from ..loaders.base import Document, Loader

MAX_BYTES = 20_000_000


@dataclass(frozen=True)
class Skipped:
    """A file that was not read, and why."""

    source: str
    why: str

    def __str__(self) -> str:
        return f"{self.source}: {self.why}"


@dataclass(frozen=True)
class Loaded:
    """What was found: documents, and the files that were skipped.

    Example:
        >>> str(Loaded([Document("a.md", "Hello")], [Skipped("b.pdf", "is a broken PDF")]))
        '1 document, 1 file skipped'
    """

    documents: list[Document] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def __str__(self) -> str:
        told = [_counted(len(self.documents), "document")]
        return ", ".join(told + ([f"{_counted(len(self.skipped), 'file')} skipped"] if self.skipped else []))


def load(place: str | Path, *, encoding: str | None = None, max_bytes: int = MAX_BYTES) -> Loaded:
    """Read a file, or all files of a folder and the folders in it, in the order of their names.

    Files and folders whose names begin with a dot are passed over.

    Args:
        place: a file or a folder.
        encoding: of texts that are not UTF-8 and do not say so; such files are skipped without it.
        max_bytes: files that are larger are skipped.

    Returns:
        Documents whose ids and sources are paths, relative to the folder; and what was skipped: files of no known kind,
        broken, empty, too large, in another encoding, or links that lead out of the folder.

    Raises:
        UsageError: there is no such place, or no such encoding.
        MissingExtraError: a package that reads a kind of file is missing.
    """
    place = Path(os.path.abspath(os.path.expanduser(place)))
    if not place.exists():
        raise UsageError(f"there is no file or folder {place}", hint="give the path of texts, Markdown, HTML or PDF")
    loaders = {ending: loader for loader in _loaders() for ending in loader.endings}
    root = place if place.is_dir() else place.parent
    loaded = Loaded()
    for path in _files(place) if place.is_dir() else (place,):
        source = path.relative_to(root).as_posix()
        try:
            content = _content(path, root, max_bytes, loaders)
            loaded.documents.extend(loaders[path.suffix.lower()].read(content, source, encoding=encoding))
        except DataError as problem:
            loaded.skipped.append(Skipped(source, problem.message + (f" ({problem.hint})" if problem.hint else "")))
    return loaded


def _loaders() -> list[Loader]:
    return [plugins.load("loaders", name) for name in plugins.names("loaders")]


def _files(folder: Path) -> Iterator[Path]:
    """Yield files, and links to folders, which are not followed."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in sorted([*names, *links]) if not name.startswith("."))


def _content(path: Path, root: Path, most: int, loaders: dict[str, Loader]) -> bytes:
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        raise DataError("is a link that leads out of the folder")
    if path.is_dir():
        raise DataError("is a link to a folder, whose files are read where they are")
    if path.suffix.lower() not in loaders:
        raise DataError(f"has no ending that is read here ({' '.join(loaders)})")
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError("is not a file")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise DataError(f"is larger than {most:,} bytes", hint="raise max_bytes")
    if not content.strip():
        raise DataError("is empty")
    return content


def _counted(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"
