"""Markdown: the file's own text, so that places in it are places in the file; its first "# " is the title."""

from __future__ import annotations

import re

from ._decoding import decoded
from .base import Document

_HEADING = re.compile(r"^ {0,3}#[ \t]+(.+?)[ \t#]*$", re.MULTILINE)


class Markdown:
    """``.md``."""

    endings = (".md", ".markdown")

    def read(self, content: bytes, source: str, *, encoding: str | None = None) -> list[Document]:
        """Return the text with its title; see ``Loader.read``."""
        text = decoded(content, encoding)
        heading = _HEADING.search(text)
        return [Document(source, text, source, heading[1].strip() if heading else "")]


PLUGIN = Markdown()
