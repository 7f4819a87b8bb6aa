"""What tasks share that learn from plain text: its rows, their tokens, the loss over the vocabulary, the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import shown
from .base import IGNORED, Encoding, Field, Problem, Row, Task

if TYPE_CHECKING:
    import torch

    from ..data.batching import Batch
    from ..data.encoding import Encoded
    from ..metrics.base import Scorer

PIECE = 4096
"""Characters of a piece of running text: about a thousand tokens, and several pieces even in a short text."""

ALIASES = ("text", "content", "document", "story", "body", "article", "passage", "sentence", "code")


class Border(NamedTuple):
    """Special tokens around a text, as the tokenizer sets them."""

    before: list[int]
    after: list[int]


@dataclass(frozen=True)
class PlainTextTask(Task):
    """Learn from documents, or from the lines of one running text."""

    output: ClassVar[str] = "vocabulary"
    other_data: ClassVar[str] = "running text (.txt)"
    scores_rows: ClassVar[bool] = True

    @property
    def fields(self) -> tuple[Field, ...]:
        """A document, or a line of running text."""
        return (
            Field("text", ALIASES, required=False, doc="a document"),
            Field("line", ("line",), required=False, joins=PIECE, doc="a line of running text, as in a .txt file"),
        )

    def problem(self, row: Row, *, labelled: bool = True) -> Problem | None:
        """Return what is wrong with the text of a row, or None."""
        del labelled
        name = "text" if "text" in row or "line" not in row else "line"
        text = row.get(name)
        if not isinstance(text, str):
            return Problem(name, shown(text), "a string")
        return None if text.strip() else Problem(name, "an empty text", "some text", drop=True)

    def loss(self, outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the summed cross entropy. outputs: logits of the supervised places, or what they come from."""
        from ._losses import asked_targets, cross_entropy

        return cross_entropy(outputs, asked_targets(outputs, batch))

    def weight(self, batch: Batch) -> float:
        """The number of supervised tokens."""
        assert batch.targets is not None
        return float(np.count_nonzero(batch.targets != IGNORED))

    def score(self, scorer: Scorer, outputs: Any, part: Encoded, rows: Sequence[Row]) -> None:
        """Feed the scorer with the tokens of each row, and the bytes of its text."""
        from ..metrics.tokens import TokenScorer

        assert isinstance(scorer, TokenScorer)
        assert part.targets is not None
        sizes = [len(text_of(row).encode()) for row in rows]
        scorer.add(outputs, part.rows, sizes, targets=part.targets[part.targets != IGNORED])


def text_of(row: Row) -> str:
    """Return the text of a row."""
    return str(row["text"] if "text" in row else row["line"])


def tokens_of(rows: Sequence[Row], tokenizer: Any) -> list[list[int]]:
    """Return the tokens of each row, without special ones around them."""
    found = tokenizer([text_of(row) for row in rows], add_special_tokens=False, truncation=False, verbose=False)
    return found["input_ids"]  # type: ignore[no-any-return]


def border_of(tokenizer: Any) -> Border:
    """Return the special tokens that this tokenizer sets around every text."""
    plain = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    whole = tokenizer("a", verbose=False)["input_ids"]
    at = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return Border(whole[:at], whole[at + len(plain) :])


def cut(tokens: NDArray[Any], length: int) -> list[NDArray[Any]]:
    """Cut tokens into parts of a length; the last may be shorter."""
    return [tokens[a : a + length] for a in range(0, max(1, len(tokens)), length)]


def encoding(
    ids: list[NDArray[np.int32]], targets: list[NDArray[np.int64]], rows: list[int], count: int, context: Any = None
) -> Encoding:
    """Return sequences of ``count`` rows of which nothing was cut off."""
    return Encoding(ids, None, [0] * count, targets, rows, context=context)
