"""Words: found in raw text without a tokenizer, turned into pieces by one, and laid out in windows.

The splitting is a rule of its own, so that a span marked in a text means the same words whatever the model.
A letter, digit or mark of a script with spaces belongs to a word; a character of Chinese or Japanese is a
word, and so is every sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Han, kana, bopomofo: written without spaces
_ALONE = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff" \
         "\uff66-\uff9f\U00020000-\U0003ffff"  # fmt: skip
# marks that are seen by nobody: they separate nothing and belong to no word (but the joiners U+200C and U+200D do)
_INVISIBLE = "\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\u0000-\u001f\u007f-\u009f\u00ad"
_SIGNS = (
    "!-/:-@\\[-`{-~\u00a1-\u00a9\u00ab\u00ac\u00ae-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u00d7\u00f7\u037e\u0387"
    "\u055a-\u055f\u0589\u058a\u05be\u05c0\u05c3\u05c6\u05f3\u05f4\u060c\u061b\u061f\u066a-\u066d\u06d4\u0964\u0965"
    "\u0e2f\u0e5a\u0e5b\u0f04-\u0f12\u104a-\u104f\u1360-\u1368\u17d4-\u17da\u2010-\u2027\u2030-\u205e\u20a0-\u20cf"
    "\u2190-\u2bff\u2e00-\u2e5d\u3001-\u3004\u3008-\u3020\u3030\u303d\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
    "\uff5b-\uff65\uffe0-\uffee\U0001f000-\U0001faff"
)
_WORD = re.compile(
    f"[{_ALONE}{_SIGNS}][\ufe00-\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0100-\U000e01ef]*"
    f"|[^\\s{_ALONE}{_SIGNS}{_INVISIBLE}]+"
)
_TOUCHING = re.compile(f"[{_ALONE}\u3001\u3002\uff01-\uff60]")


class Window(NamedTuple):
    """Words ``start`` to ``stop`` seen together, of which ``first`` to ``last`` are asked here and nowhere else."""

    start: int
    stop: int
    first: int
    last: int


def split_words(text: str) -> list[tuple[int, int]]:
    """Return where the words of a text begin and end.

    Example:
        >>> [text[a:b] for text in ["Ida's 北京 trip"] for a, b in split_words(text)]
        ['Ida', "'", 's', '北', '京', 'trip']
    """
    return [match.span() for match in _WORD.finditer(text)]


def joined(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Write words as a text, and say where each is; Chinese and Japanese have no spaces between them."""
    parts: list[str] = []
    places: list[tuple[int, int]] = []
    at, before = 0, ""
    for word in words:
        if before and not (_TOUCHING.match(before[-1]) and _TOUCHING.match(word[:1])):
            parts.append(" ")
            at += 1
        parts.append(word)
        places.append((at, at + len(word)))
        at, before = at + len(word), word
    return "".join(parts), places


class Pieces:
    """The sub-words of words, each word tokenised once, as if it stood between others.

    A tokenizer that writes the space into the piece behind it (byte-level BPE) gets the word with its space.
    A word of which nothing is left (an invisible character) is one unknown token, so that it too is answered.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, NDArray[np.int32]] = {}
        plain, behind, together = (self._ids([text])[0] for text in ("a", " a", "a a"))
        self._space = " " if together != plain + plain and together == plain + behind else ""
        whole = tokenizer("a", verbose=False)["input_ids"]
        at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
        self.before, self.after = whole[:at], whole[at + len(plain) :]
        """Special tokens around a text."""
        names = ("unk_token_id", "mask_token_id", "eos_token_id", "pad_token_id")
        self._nothing = next((i for i in (getattr(tokenizer, name, None) for name in names) if i is not None), 0)

    def of(self, rows: Iterable[Sequence[str]]) -> list[list[NDArray[np.int32]]]:
        """Return the pieces of every word of every row; no word has none."""
        rows = list(rows)
        new = list(dict.fromkeys(word for words in rows for word in words if word not in self._known))
        for word, ids in zip(new, self._ids([self._space + word for word in new]) if new else []):
            self._known[word] = np.asarray(ids or [self._nothing], dtype=np.int32)
        return [[self._known[word] for word in words] for words in rows]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[no-any-return]


def windows(sizes: Sequence[int], room: int, stride: int) -> list[Window]:
    """Cover words with windows of at most ``room`` tokens that share about ``stride``; no word is cut in two.

    Of two windows that hold a word, the one that has more tokens between the word and its own border is asked.

    Args:
        sizes: tokens of each word, each at most ``room``.
        room: tokens of a window.
        stride: tokens that neighbours share, at most half of ``room``.
    """
    ends = np.cumsum([0, *sizes])
    spans: list[tuple[int, int]] = []
    start = 0
    while True:
        stop = int(np.searchsorted(ends, ends[start] + room, side="right")) - 1
        spans.append((start, stop))
        if stop >= len(sizes):
            break
        shared = int(np.searchsorted(ends, ends[stop] - min(stride, room // 2), side="left"))
        fits = int(np.searchsorted(ends, ends[stop + 1] - room, side="left"))  # the next word must be new
        start = max(shared, fits, start + 1)
    between = [_border(ends, one, other) for one, other in pairwise(spans)]
    borders = np.maximum.accumulate([0, *between, len(sizes)]).tolist()
    return [Window(*span, first, last) for span, (first, last) in zip(spans, pairwise(borders))]


def _border(ends: NDArray[np.int64], one: tuple[int, int], other: tuple[int, int]) -> int:
    """Return the first word of an overlap that has at least as much behind it in the later window."""
    for word in range(other[0], one[1]):
        if ends[word] - ends[other[0]] >= ends[one[1]] - ends[word + 1]:
            return word
    return one[1]
