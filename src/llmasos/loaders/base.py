"""What a loader is: bytes of a file in, documents out.

A loader gets what was read and never opens anything itself: sizes, links and kinds of files are looked at in one place
(``apps/documents.py``). What it cannot read it refuses by a DataError that says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Document:
    """A text, and where it comes from.

    Args:
        id: what names it in an index; one text for each.
        text: what passages are cut from, as it stands.
        source: the file or address; several documents (pages) may share it.
        title: what it is called; shown beside its passages and searched with them.
        page: of a document of pages, from 1.
    """

    id: str
    text: str
    source: str = ""
    title: str = ""
    page: int | None = None


class Loader(Protocol):
    """A kind of file."""

    endings: tuple[str, ...]
    """Endings of file names, in small letters, with the dot."""

    def read(self, content: bytes, source: str, *, encoding: str | None = None) -> Sequence[Document]:
        """Return the documents of a file.

        Args:
            content: the whole file.
            source: its name, for the documents.
            encoding: of its text, where it has one and it is not told by the file.

        Raises:
            DataError: it is broken, empty or in another encoding; the message is one line without the file's name.
        """
