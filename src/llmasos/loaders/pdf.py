"""PDF: one document for each page that holds text. A page of pictures needs to be read by an OCR program first."""

from __future__ import annotations

import io
import logging
import re
from typing import Any

from ..core.errors import DataError, MissingExtraError
from .base import Document

_LARGEST = 20_000_000  # characters of all pages: a small file may unpack to any size
_MOST = 5_000


class PDF:
    """``.pdf``."""

    endings = (".pdf",)

    def read(self, content: bytes, source: str, *, encoding: str | None = None) -> list[Document]:
        """Return the pages; see ``Loader.read``."""
        del encoding  # a PDF says it itself
        try:
            import pypdf
        except ImportError as error:
            raise MissingExtraError("reading PDF", install='"llmasos[apps]"') from error
        logging.getLogger("pypdf").setLevel(logging.ERROR)  # it tells of every small fault that it repairs
        try:
            return _pages(pypdf.PdfReader(io.BytesIO(content)), source)
        except DataError:
            raise
        except Exception as error:  # of a broken file pypdf raises whatever its parts raise
            raise DataError(f"is a broken PDF ({type(error).__name__}: {error})".replace("\n", " ")) from error


def _pages(reader: Any, source: str) -> list[Document]:
    if reader.is_encrypted and not reader.decrypt(""):
        raise DataError("is a PDF that needs a password")
    if len(reader.pages) > _MOST:
        raise DataError(f"has {len(reader.pages):,} pages, more than {_MOST:,}", hint="cut it into parts")
    about = reader.metadata.title if reader.metadata else None
    title = " ".join(str(about).split()) if about else ""
    pages: list[Document] = []
    size = 0
    for number, page in enumerate(reader.pages, 1):
        text = re.sub(r"[ \t]+\n", "\n", page.extract_text() or "").replace("\0", "").strip()
        size += len(text)
        if size > _LARGEST:
            raise DataError(f"holds more than {_LARGEST:,} characters", hint="cut it into parts")
        if text:
            pages.append(Document(f"{source}#page={number}", text, source, title, number))
    if not pages:
        raise DataError("is a PDF without text", hint="scanned pages need OCR first")
    return pages


PLUGIN = PDF()
