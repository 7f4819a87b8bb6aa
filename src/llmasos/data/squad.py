"""The files of SQuAD itself, and of data sets in its layout: articles with paragraphs with questions.

One document, ``{"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}``, gives
one row a question. A list of rows under "data" gives these rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ..core.errors import DataError, shown

_START = re.compile(r'\s*\{\s*("version"\s*:\s*("[^"]*"|[\d.]+)\s*,\s*)?"data"\s*:\s*\[\s*\{')


def is_nested(head: str) -> bool:
    """Whether a file that begins like this is one document with its rows under "data"."""
    return _START.match(head) is not None


def questions(name: str, text: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a document.

    Args:
        name: the file, for messages.
        text: all of it.

    Raises:
        DataError: it is not JSON, or a part of it is missing or of another kind (named with its place).
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{name}, line {error.lineno}: not JSON: {error.msg.lower()} at character {error.colno}",
            hint="one document of SQuAD's layout, or one object a line",
        ) from error
    for i, article in enumerate(_list(name, document, "data", "")):
        if "paragraphs" not in article:
            yield article
            continue
        title = {"title": article["title"]} if "title" in article else {}
        for j, paragraph in enumerate(_list(name, article, "paragraphs", f"data[{i}].")):
            place = f"data[{i}].paragraphs[{j}]."
            for question in _list(name, paragraph, "qas", place):
                yield {**title, "context": paragraph.get("context"), **question}


def _list(name: str, parent: dict[str, Any], key: str, place: str) -> list[dict[str, Any]]:
    found = parent.get(key)
    wrong = found if not isinstance(found, list) else next((one for one in found if not isinstance(one, dict)), None)
    if wrong is not None or found is None:
        raise DataError(
            f"{name}: {place}{key} is {shown(wrong)}, expected a list of objects",
            hint='SQuAD\'s layout: {"data": [{"paragraphs": [{"context": "...", "qas": [{"question": "...", ...}]}]}]}',
        )
    return found  # type: ignore[no-any-return]
