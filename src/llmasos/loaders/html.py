"""HTML: what a reader sees of a page, with headings marked as in Markdown. Nothing of it is run or fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..core.errors import MissingExtraError
from ._decoding import decoded, said
from .base import Document

_UNSEEN = ("script", "style", "noscript", "template", "svg", "math", "head", "iframe", "object", "nav", "button")
_INLINE = frozenset(
    ("a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "img", "ins",
     "kbd", "label", "mark", "q", "rp", "rt", "ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup",
     "td", "th", "time", "tt", "u", "var", "wbr")
)  # fmt: skip
_HEADINGS = tuple(f"h{level}" for level in range(1, 7))


class HTML:
    """``.html`` and ``.htm``."""

    endings = (".html", ".htm", ".xhtml")

    def read(self, content: bytes, source: str, *, encoding: str | None = None) -> list[Document]:
        """Return what the page says; see ``Loader.read``."""
        try:
            from bs4 import BeautifulSoup
            from bs4.dammit import EncodingDetector
        except ImportError as error:
            raise MissingExtraError("reading HTML", install='"llmasos[apps]"') from error
        declared = EncodingDetector.find_declared_encoding(content, is_html=True)
        page = BeautifulSoup(decoded(content, encoding or declared), "html.parser")
        title = _line(page.title.get_text()) if page.title else ""
        for tag in page.find_all(_UNSEEN):
            tag.decompose()
        for tag in page.find_all(hidden=True):
            tag.decompose()
        text = "".join(_said(page))
        text = re.sub(r"[ \t]*\n[ \t]*", "\n", re.sub(r"[ \t]+", " ", text))
        text = re.sub(r"\n{3,}", "\n\n", text).strip()
        heading = page.h1
        return [Document(source, said(text), source, title or (_line(heading.get_text()) if heading else ""))]


def _said(page: Any) -> Iterator[str]:
    """Yield the text of a page, blocks apart; walked without recursion, for pages may be nested without end."""
    for one in page.descendants:
        if not hasattr(one, "children"):
            if type(one).__name__ == "NavigableString":
                yield re.sub(r"\s+", " ", one)
            continue
        if one.name not in _INLINE:
            yield "\n\n" if one.name not in ("br", "li", "tr") else "\n"
        if one.name in _HEADINGS:
            yield "#" * int(one.name[1]) + " "
        elif one.name == "li":
            yield "- "
        elif one.name in ("td", "th"):
            yield " "


def _line(text: str) -> str:
    return " ".join(text.split())


PLUGIN = HTML()
