"""Documents cut into passages: at headings, then paragraphs, then sentences, and only then inside one.

A passage knows its place: ``document.text[passage.start:passage.end] == passage.text``. Sentences end as in English
and Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from ..core.errors import UsageError
from ..loaders.base import Document
from ..stores.base import Passage

_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE = re.compile(r"""(?<=[.!?])["'”’)\]]*\s+|(?<=[。！？；…])[”’」』）】]*\s*|\n""")
_WORD = re.compile(r"\s+")


class _Section(NamedTuple):
    start: int
    end: int
    heading: str
    body: int  # where the text under the heading begins


def split(document: Document, *, max_chars: int = 1000, overlap: int = 0) -> list[Passage]:
    """Cut a document into passages.

    Args:
        document: what is cut. Lines that begin with ``#`` are headings, as in Markdown.
        max_chars: the most characters of a passage.
        overlap: how many characters of a passage, at most, the next one repeats: whole sentences, within a section.

    Returns:
        Passages in order. Together they hold all that is not white space, but for headings without a text of their own.

    Raises:
        UsageError: the lengths make no sense.
    """
    if max_chars < 20 or not 0 <= overlap <= max_chars // 2:
        raise UsageError(f"passages of {max_chars} characters with an overlap of {overlap} cannot be made",
                         hint="max_chars is at least 20, overlap at most half of it")  # fmt: skip
    text = document.text
    one = document
    return [
        Passage(text[start:end], one.id, one.source, one.title, section.heading, one.page, start, end)
        for section in _sections(text)
        for start, end in _packed(text, section, max_chars, overlap)
    ]


def _sections(text: str) -> Iterator[_Section]:
    fences = [match.start() for match in _FENCE.finditer(text)]
    heads = [match for match in _HEADING.finditer(text) if sum(fence < match.start() for fence in fences) % 2 == 0]
    above: dict[int, str] = {}
    if not heads or heads[0].start() > 0:
        yield _Section(0, heads[0].start() if heads else len(text), "", 0)
    for place, head in enumerate(heads):
        level = len(head[1])
        above = {one: said for one, said in above.items() if one < level} | {level: head[2].strip()}
        end = heads[place + 1].start() if place + 1 < len(heads) else len(text)
        yield _Section(head.start(), end, " › ".join(above.values()), head.end())


def _packed(text: str, section: _Section, most: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Yield the places of a section's passages: units joined as long as they fit."""
    if not text[section.body : section.end].strip():
        return
    start = end = -1
    for first, last in _units(text, section.start, section.end, most):
        if start >= 0 and last - start > most:
            yield start, end
            again = _back(text, start, end, overlap)
            start = again if again is not None and last - again <= most else first
        start, end = (first if start < 0 else start), last
    if start >= 0:
        yield start, end


def _units(text: str, start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield paragraphs; where one is too long its sentences; where one is too long its words, or what fits."""
    for paragraph in _pieces(text, start, end, _PARAGRAPH):
        if paragraph[1] - paragraph[0] <= most:
            yield paragraph
            continue
        for sentence in _pieces(text, *paragraph, _SENTENCE):
            if sentence[1] - sentence[0] <= most:
                yield sentence
                continue
            for first, last in _pieces(text, *sentence, _WORD):
                yield from ((at, min(at + most, last)) for at in range(first, last, most))


def _pieces(text: str, start: int, end: int, between: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Yield what stands between matches, without white space around it; what closes a sentence belongs to it."""
    places = [start, *(match.end() for match in between.finditer(text, start, end)), end]
    for first, last in pairwise(places):
        part = text[first:last]
        if part.strip():
            yield first + len(part) - len(part.lstrip()), last - len(part) + len(part.rstrip())


def _back(text: str, start: int, end: int, overlap: int) -> int | None:
    """Return where the next passage begins, so that it repeats the last sentences of this one, at most ``overlap``."""
    starts = [first for first, _ in _pieces(text, start, end, _SENTENCE)]
    return next((first for first in starts if first > start and end - first <= overlap), None)
