"""Words as both stores search them: Chinese and Japanese, which are written without spaces, by pairs of characters.

Engines of full text take a run of such characters for one word. Here a run becomes its characters and its pairs of
neighbours, and a query asks for pairs (Nie & Ren 1999: as good as segmenting words, and without a dictionary).
"""

from __future__ import annotations

import re
from itertools import pairwise

_RUN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]+")
_MOST = 64  # words of one query

K1, B = 1.2, 0.75
"""The constants of BM25, those of SQLite's FTS5 and of Lucene."""


def indexed(text: str) -> str:
    """Return a text as it is indexed."""
    return _RUN.sub(lambda run: f" {' '.join((*run[0], *_pairs(run[0])))} ", text)


def asked(query: str) -> list[str]:
    """Return the words of a query, each once, in their order; the first 64."""
    text = _RUN.sub(lambda run: f" {' '.join(_pairs(run[0]) or run[0])} ", query)
    return list(dict.fromkeys(re.findall(r"\w+", text.lower())))[:_MOST]


def _pairs(run: str) -> list[str]:
    return [first + second for first, second in pairwise(run)]
