"""Plain text: one document, as it stands."""

from __future__ import annotations

from ._decoding import decoded
from .base import Document


class PlainText:
    """``.txt``."""

    endings = (".txt", ".text")

    def read(self, content: bytes, source: str, *, encoding: str | None = None) -> list[Document]:
        """Return the text; see ``Loader.read``."""
        return [Document(source, decoded(content, encoding), source)]


PLUGIN = PlainText()
