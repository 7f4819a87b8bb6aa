"""Language modeling: the next token of plain text, from scratch or as continued pretraining of a causal model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np

from ..core.errors import UsageError
from ..metrics.tokens import TokenScorer
from ._vocabulary import Border, PlainTextTask, border_of, cut, encoding, text_of, tokens_of
from .base import Encoding, Row


@dataclass(frozen=True)
class TextScore:
    """How well a model foretells a text.

    Args:
        tokens: how many tokens were foretold, the end of a document among them.
        loss: the mean negative log probability of a token.
        perplexity: its exponential.
        bits_per_byte: the text's information in bits, over its bytes in UTF-8.
    """

    tokens: int
    loss: float
    perplexity: float
    bits_per_byte: float

    def as_dict(self) -> dict[str, Any]:
        """Return the scores as JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        return f"perplexity {self.perplexity:.4g}, {self.bits_per_byte:.3f} bits per byte"


@dataclass(frozen=True)
class LanguageModelingTask(PlainTextTask):
    """Learn to foretell the next token of documents or of running text.

    A document begins with the token by which the tokenizer begins texts (or that which ends them, if it has
    none) and ends with the end-of-sequence token, so that every byte of it is foretold. A piece of running text
    (a .txt file) has no end. What is longer than ``max_length`` goes on in the next sequence; nothing is cut off.
    """

    tag: ClassVar[str] = "language-modeling"
    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    default_metric: ClassVar[str] = "perplexity"

    most_unknown: ClassVar[float] = 0.01

    def fitted(self, rows: Iterable[Row], tokenizer: Any = None) -> tuple[Self, list[str]]:
        """Check that the tokenizer can end a text."""
        del rows
        if tokenizer is not None:
            _border(tokenizer)
        return self, []

    def encode(self, rows: Sequence[Row], tokenizer: Any, max_length: int, *, labelled: bool = True) -> Encoding:
        """Cut each text into sequences; the target of each token is the one behind it, also across a cut."""
        del labelled  # a text is its own answer
        border = _border(tokenizer)
        owners: list[int] = []
        ids, targets = [], []
        for place, (row, tokens) in enumerate(zip(rows, tokens_of(rows, tokenizer), strict=True)):
            after = border.after if "text" in row else []
            whole = np.asarray([*border.before, *tokens, *after], dtype=np.int32)
            if len(whole) < 2:  # running text of which the tokenizer keeps nothing
                continue
            ids += cut(whole[:-1], max_length)
            targets += cut(whole[1:].astype(np.int64), max_length)
            owners += [place] * (len(ids) - len(owners))
        return encoding(ids, targets, owners, len(rows))

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Loss, perplexity, accuracy of single tokens, bits per byte."""
        return ("loss", "perplexity", "token_accuracy", "bits_per_byte")

    def scorer(self) -> TokenScorer:
        """Return an empty scorer that is told the bytes of each text."""
        return TokenScorer(bytes=True)

    def prompt(self, row: Row, tokenizer: Any, longest: int | None = None) -> list[int]:
        """Return the tokens of a text, to be gone on with."""
        del longest
        return [*_border(tokenizer).before, *tokens_of([row], tokenizer)[0]]

    def decode(self, outputs: Any, encoding: Encoding, rows: Sequence[Row]) -> list[Any]:
        """Score each text as a whole."""
        assert encoding.rows is not None
        sums = np.zeros((len(rows), 2))
        for place, one in zip(encoding.rows, outputs, strict=True):
            sums[place] += one[:, 0].sum(dtype=np.float64), len(one)
        return [_scored(float(loss), int(tokens), text_of(row)) for (loss, tokens), row in zip(sums, rows, strict=True)]

    @classmethod
    def sample(cls) -> tuple[Self, list[dict[str, Any]]]:
        """A nursery rhyme's worth of text that repeats itself."""
        return cls(), [{"text": f"one two {word} one two {word}"} for word in ("six", "ten") for _ in range(12)]


def _scored(loss: float, tokens: int, text: str) -> TextScore:
    mean = loss / max(1, tokens)
    return TextScore(tokens, mean, math.exp(min(mean, 700.0)), loss / math.log(2) / max(1, len(text.encode())))


def _border(tokenizer: Any) -> Border:
    """Return what begins and what ends a document.

    Raises:
        UsageError: the tokenizer has no token that ends a text.
    """
    own = border_of(tokenizer)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise UsageError(
            "this tokenizer has no token for the end of a text", hint="a tokenizer with an eos_token, as writers have"
        )
    start = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return Border(own.before or [start], own.after or [end])


PLUGIN = LanguageModelingTask
