"""What runs a model for prediction and evaluation: batches of encoded rows in, logits out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.batching import Batch


class Engine(Protocol):
    """A loaded model. The answer for a row must not depend on the rows beside it."""

    how: str
    """In words: precision and path, with the reason."""

    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Return the model's outputs, (rows, outputs), in the batch's order of rows."""


def few(batch: Batch, rows: int = 4) -> Batch:
    """Return a few rows of a batch, and short beginnings of them: enough to compare two ways to compute.

    The beginnings have many lengths, so that the padded groups of a packed forward are compared too,
    whatever rows come first.
    """
    ends = np.cumsum(batch.lengths)
    whole = np.unique(np.linspace(0, len(batch) - 1, min(rows, len(batch))).astype(int))
    picks = np.concatenate([whole, np.resize(whole, 8)])
    lengths = np.minimum(batch.lengths[picks], [*batch.lengths[whole], *range(9, 1, -1)]).astype(np.int32)
    order = np.argsort(-lengths, kind="stable")
    picks, lengths = picks[order], lengths[order]
    starts = (ends - batch.lengths)[picks]
    places = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])
    return Batch(
        batch.ids[places],
        None if batch.types is None else batch.types[places],
        lengths,
        batch.rows[picks],
        None if batch.targets is None else batch.targets[picks],
    )
