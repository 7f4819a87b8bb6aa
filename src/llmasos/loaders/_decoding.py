"""Bytes to text, without guessing: a wrong guess gives words that nobody wrote, and nobody is told."""

from __future__ import annotations

import codecs
import re

from ..core.errors import DataError, UsageError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_LOOKED_AT = 1 << 16  # bytes that an encoding is named from


def decoded(content: bytes, encoding: str | None = None) -> str:
    r"""Return the text of a file: in ``encoding``, else as its byte order mark says, else in UTF-8.

    Line ends become ``\n``.

    Raises:
        DataError: it is none of them (the message names what it looks like), is not text, or holds none.
        UsageError: there is no such encoding.
    """
    chosen = encoding or next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(chosen)
    except LookupError as error:
        raise UsageError(f"there is no encoding {chosen!r}", hint="for example gb18030 or big5") from error
    except UnicodeError as error:
        raise DataError(f"is not {chosen}{_looks_like(content)}", hint="save it as UTF-8, or give encoding=") from error
    if "\0" in text:
        raise DataError("is not a text: it holds zero bytes")
    return said(re.sub(r"\r\n?", "\n", text))


def said(text: str) -> str:
    """Return the text, if it says anything.

    Raises:
        DataError: it is empty.
    """
    if not text.strip():
        raise DataError("is empty")
    return text


def _looks_like(content: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(content[:_LOOKED_AT]).best()
    return f", and looks like {best.encoding}" if best and best.encoding not in ("utf_8", "ascii") else ""
