"""Scores of extracted answers: exact match and F1, as the official scripts of the data sets define them.

By words: the evaluation script of SQuAD 2.0 (Rajpurkar et al. 2018, evaluate-v2.0.py), which on questions that
all have answers gives what that of SQuAD 1.1 gives. By characters, for Chinese: the script of CMRC 2018 (Cui et
al. 2019, cmrc2018_evaluate.py). Both take the best over all right answers of a question. Values are shares, 0 to
1, where the scripts give per cent.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .base import Floats, Report, counted_rows, divided, interval, resamples

BY = ("words", "characters")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_SIGNS = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_HAN = re.compile(r"[\u4e00-\u9fa5]")
# numbers with their points, words, single signs
_SEGMENT = re.compile(r"[\u4e00-\u9fa5]|\d+(?:[.,]\d+)*|[^\W\d\u4e00-\u9fa5]+|[^\s\w]|[\d_]")
_SENTENCE = re.compile(r"\s*(.+?)(?:(?<=[.!?])(?=\s)|(?<=[。！？])|$)", re.DOTALL)


class Gold(NamedTuple):
    """The right answers of a question (none: it has none in this context), and the context."""

    texts: Sequence[str]
    context: str


def normalized(text: str) -> str:
    """Return a text as SQuAD compares it: lower case, without ASCII punctuation and English articles.

    Example:
        >>> normalized("The  U.S. Army!")
        'us army'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def segments(text: str) -> list[str]:
    """Return a text as CMRC 2018 cuts it: each Chinese character alone, other runs as words, without punctuation.

    The script leaves other runs to NLTK's ``word_tokenize``; here they are cut at spaces and signs, numbers kept whole.

    Example:
        >>> segments("《红楼梦》 volume 2.")
        ['红', '楼', '梦', 'volume', '2', '.']
    """
    return _SEGMENT.findall(text.lower().translate(_NO_SIGNS))


def is_chinese(text: str) -> bool:
    """Whether more than half of a text's letters and digits are Chinese characters."""
    return 2 * len(_HAN.findall(text)) > sum(map(str.isalnum, text))


def scored(answer: str, gold: Sequence[str], by: str = "words") -> tuple[float, float]:
    """Return exact match and F1 of an answer, each the best over the right answers.

    An empty answer is right where there is no right answer, and wrong elsewhere.

    Args:
        answer: the answer given; "" for none.
        gold: the right answers; none of them, or only such as normalise to nothing, mean "no answer".
        by: "words" (SQuAD) or "characters" (CMRC 2018).
    """
    compare = _by_words if by == "words" else _by_characters
    bare = normalized if by == "words" else _bare
    pairs = [compare(answer, text) for text in [text for text in gold if bare(text)] or [""]]
    return max(exact for exact, _ in pairs), max(f1 for _, f1 in pairs)


def _by_words(answer: str, gold: str) -> tuple[float, float]:
    """Compare bags of words."""
    one, other = normalized(answer), normalized(gold)
    given, wanted = one.split(), other.split()
    if not given or not wanted:
        return float(one == other), float(given == wanted)
    return float(one == other), _f1((Counter(given) & Counter(wanted)).total(), len(given), len(wanted))


def _by_characters(answer: str, gold: str) -> tuple[float, float]:
    """Compare by the longest run that both share."""
    exact = float(_bare(answer) == _bare(gold))
    given, wanted = segments(answer), segments(gold)
    if not given or not wanted:
        return exact, float(given == wanted)
    match = difflib.SequenceMatcher(None, given, wanted, autojunk=False).find_longest_match()
    return exact, _f1(match.size, len(given), len(wanted))


def _bare(text: str) -> str:
    return text.lower().strip().translate(_NO_SIGNS)


def _f1(same: int, given: int, wanted: int) -> float:
    return 2 * same / (given + wanted)


class AnswerScorer:
    """Scores answers to questions, of which some may have none.

    It keeps how many rows reached each pair of exact match and F1: F1 takes few values. With both kinds of
    questions, those with an answer and those without are also scored apart, as SQuAD 2.0's script does it.

    Args:
        by: "words" or "characters".
    """

    def __init__(self, by: str = "words") -> None:
        self.by = by
        self._cells = Counter[tuple[bool, float, float]]()  # (has an answer, exact match, F1) -> rows
        self._empty = Counter[tuple[bool, float, float]]()
        self._first = Counter[tuple[bool, float, float]]()

    def add(self, logits: Any, targets: Any) -> None:
        """Take in answers.

        Args:
            logits: here the answers as texts, "" for none.
            targets: for each its ``Gold``.
        """
        for answer, gold in zip(logits, targets, strict=True):
            has_answer = scored("", gold.texts, self.by)[0] == 0.0
            sentence = _SENTENCE.match(gold.context)
            first = sentence.group(1) if sentence else ""
            for cells, given in ((self._cells, answer), (self._empty, ""), (self._first, first)):
                cells[(has_answer, *scored(given, gold.texts, self.by))] += 1

    def values(self) -> dict[str, float]:
        """Return the point values so far."""
        counted_rows(self._cells.total())
        return _values(self._cells)

    def baseline(self) -> dict[str, float]:
        """Return the values of always giving no answer, or of always giving the context's first sentence.

        The better of the two, by F1.
        """
        counted_rows(self._cells.total())
        return max(_values(self._empty), _values(self._first), key=lambda values: values["f1"])

    def report(self, samples: int = 1000, seed: int = 0) -> Report:
        """Return all scores with intervals."""
        rows = counted_rows(self._cells.total())
        keys, counts = list(self._cells), np.asarray(list(self._cells.values()))
        drawn = list(resamples(counts, samples, np.random.default_rng(seed)))
        draws = _scores(keys, np.concatenate(drawn))
        points = _scores(keys, counts)
        metrics = {name: interval(float(points[name]), draw) for name, draw in draws.items()}
        return Report(rows, metrics, self.baseline(), per_class={})


def _values(cells: Counter[tuple[bool, float, float]]) -> dict[str, float]:
    return {name: float(value) for name, value in _scores(list(cells), np.asarray(list(cells.values()))).items()}


def _scores(keys: list[tuple[bool, float, float]], counts: Any) -> dict[str, Floats]:
    """Score counts of rows by cell, (..., cells)."""
    has, exact, f1 = (np.asarray(column, dtype=np.float64) for column in zip(*keys, strict=True))
    rows = counts.sum(-1)
    out = {"exact_match": divided(counts @ exact, rows), "f1": divided(counts @ f1, rows)}
    if 0.0 < has.sum() < len(has):
        with_, without = counts @ has, counts @ (1.0 - has)
        out["has_answer_exact_match"] = divided(counts @ (has * exact), with_)
        out["has_answer_f1"] = divided(counts @ (has * f1), with_)
        out["no_answer_accuracy"] = divided(counts @ ((1.0 - has) * exact), without)
    return out
