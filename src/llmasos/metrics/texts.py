"""Scores of written texts: BLEU and chrF of translations, ROUGE of summaries.

The numbers are those of sacreBLEU (Post 2018) and rouge-score, with the signature by which others can repeat
them. Of each row only its counts are kept; corpus scores and their bootstrap intervals are computed from sums
of these (Koehn 2004), so that no text is looked at twice.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Floats, Report, interval, resamples
from .tokens import TokenScorer

_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_KANA = re.compile(r"[\u3040-\u30ff]")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


class WrittenScorer(ABC):
    """Scores single tokens, and the texts that a model writes where it was let to write.

    What a model without any learning would reach is the baseline: it gives each row the text that
    ``untrained`` makes of its source.
    """

    def __init__(self) -> None:
        self._tokens = TokenScorer()
        self._counts: list[NDArray[Any]] = []  # (rows, counts)
        self._untrained: list[NDArray[Any]] = []

    def add(self, outputs: Any, targets: Any, /) -> None:
        """Take in single tokens: what an engine gives for each example, and their rows with the tokens asked for."""
        rows, tokens = targets
        self._tokens.add(outputs, rows, targets=tokens)

    def add_texts(self, texts: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str]) -> None:
        """Take in written texts, the texts that were wanted, and the sources of both."""
        if texts:
            self._counts.append(self._counted(texts, references))
            self._untrained.append(self._counted([self.untrained(source) for source in sources], references))

    def values(self) -> dict[str, float]:
        """Return the scores of single tokens, and of texts if there are any."""
        return {**self._tokens.values(), **self._scored(self._counts)}

    def baseline(self) -> dict[str, float]:
        """Return the same for a model that has learned nothing."""
        return {**self._tokens.baseline(), **self._scored(self._untrained)}

    def report(self, samples: int = 1000, seed: int = 0) -> Report:
        """Return all scores with intervals, and how the texts were scored."""
        report = replace(self._tokens.report(samples, seed), baseline=self.baseline())
        if not self._counts:
            return report
        counts = np.concatenate(self._counts)
        points, rng = self._total(counts.sum(axis=0)), np.random.default_rng(seed)
        parts = [drawn @ counts for drawn in resamples(np.ones(len(counts), dtype=np.int64), samples, rng)]
        draws = [self._total(total) for total in np.concatenate(parts)]
        texts = {name: interval(value, np.asarray([draw[name] for draw in draws])) for name, value in points.items()}
        return replace(report, metrics={**report.metrics, **texts}, signatures=self.signatures())

    def _scored(self, parts: list[NDArray[Any]]) -> dict[str, float]:
        return self._total(np.concatenate(parts).sum(axis=0)) if parts else {}

    @abstractmethod
    def untrained(self, source: str) -> str:
        """Return what needs no model."""

    @abstractmethod
    def signatures(self) -> dict[str, str]:
        """Return, for each score of texts, the exact way it was computed."""

    @abstractmethod
    def _counted(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[Any]:
        """Return what is kept of each row, (rows, counts)."""

    @abstractmethod
    def _total(self, counts: NDArray[Any]) -> dict[str, float]:
        """Return the scores from the sum over rows, (counts,)."""


class TranslationScorer(WrittenScorer):
    """BLEU and chrF, 0 to 100, of the corpus. The baseline copies the source.

    Args:
        language: of the targets; Chinese is cut into characters ("zh"), Japanese too ("char"). None looks at the
            first references.
    """

    def __init__(self, language: str | None = None) -> None:
        super().__init__()
        self._language = language
        self._split: list[int] = []

    @cached_property
    def _metrics(self) -> dict[str, Any]:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF

        return {"bleu": BLEU(tokenize=bleu_tokenizer(self._language), force=True), "chrf": CHRF()}

    def untrained(self, source: str) -> str:
        """Return the source itself."""
        return source

    def signatures(self) -> dict[str, str]:
        """Return sacreBLEU's own signatures."""
        return {name: str(metric.get_signature()) for name, metric in self._metrics.items()}

    def _counted(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[Any]:
        if self._language is None:
            self._language = guessed([reference for several in references for reference in several])
        columns = [list(column) for column in zip(*references, strict=True)]
        parts = [np.asarray(m._extract_corpus_statistics(texts, columns)) for m in self._metrics.values()]
        self._split = list(np.cumsum([part.shape[1] for part in parts])[:-1])
        return np.concatenate(parts, axis=1)

    def _total(self, counts: NDArray[Any]) -> dict[str, float]:
        parts = np.split(counts, self._split)
        return {
            name: float(metric._compute_score_from_stats(part.tolist()).score)
            for (name, metric), part in zip(self._metrics.items(), parts, strict=True)
        }


class SummaryScorer(WrittenScorer):
    """ROUGE-1, -2 and -L (F1, 0 to 1) with the nearest of a row's summaries, their mean over rows.

    The baseline is the first sentence of the document.

    Args:
        language: English is compared by stems, Chinese and Japanese by characters, others by words.
    """

    names = ("rouge1", "rouge2", "rougeL")

    def __init__(self, language: str = "en") -> None:
        super().__init__()
        self._language = language

    @cached_property
    def _rouge(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        if self._language.lower().startswith("en"):
            return RougeScorer(self.names, use_stemmer=True)
        return RougeScorer(self.names, tokenizer=_Words())

    def untrained(self, source: str) -> str:
        """Return the first sentence."""
        return _SENTENCE.split(source.strip(), maxsplit=1)[0]

    def signatures(self) -> dict[str, str]:
        """Return the version of rouge-score and what counts as a word."""
        from importlib.metadata import version

        words = "porter stems" if self._language.lower().startswith("en") else "words, of Chinese characters"
        return dict.fromkeys(self.names, f"rouge-score {version('rouge-score')}, F1, {words}, the nearest reference")

    def _counted(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[Any]:
        found = [self._rouge.score_multi(list(wanted), text) for text, wanted in zip(texts, references, strict=True)]
        return np.asarray([[1.0, *(one[name].fmeasure for name in self.names)] for one in found])

    def _total(self, counts: Floats) -> dict[str, float]:
        return dict(zip(self.names, (counts[1:] / counts[0]).tolist(), strict=True))


class _Words:
    """Words in lower case; of scripts without spaces each character is one."""

    _pattern = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return self._pattern.findall(text.lower())


def bleu_tokenizer(language: str | None) -> str:
    """Return the tokenizer that sacreBLEU shall cut a language with, of those that need no further package."""
    name = re.split(r"[_\-]", (language or "").lower())[0]
    known = {"zh": "zh", "zho": "zh", "cmn": "zh", "chinese": "zh", "ja": "char", "jpn": "char", "japanese": "char"}
    return known.get(name, "13a")


def guessed(texts: Sequence[str]) -> str:
    """Return "zh" or "ja" if most of the letters are of that script, else nothing."""
    some = "".join(texts[:1000])
    letters = sum(map(str.isalpha, some))
    kana, han = len(_KANA.findall(some)), len(_HAN.findall(some))
    if 2 * (han + kana) <= letters:
        return ""
    return "ja" if 10 * kana > han else "zh"
