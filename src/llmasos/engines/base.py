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


def few(batch: Batch, rows: int = 8) -> Batch:
    """Return a few rows of a batch, spread over its lengths: enough to compare two ways to compute.

    Different lengths matter: they make the padded groups of a packed forward, which equal ones don't.
    """
    offsets = np.concatenate([[0], np.cumsum(batch.lengths)])
    picks = np.unique(np.linspace(0, len(batch) - 1, min(rows, len(batch))).astype(int))
    places = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in picks])
    return Batch(
        batch.ids[places],
        None if batch.types is None else batch.types[places],
        batch.lengths[picks],
        batch.rows[picks],
        None if batch.targets is None else batch.targets[picks],
    )
