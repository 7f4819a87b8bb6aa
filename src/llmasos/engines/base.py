"""What runs a model for prediction and evaluation: batches of encoded rows in, logits out."""

from __future__ import annotations

from typing import Any, Protocol

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
    """Return the shortest few rows of a batch: enough to compare two ways to compute."""
    from ..data.batching import split

    size = min(rows, len(batch))
    parts: list[Any] = split(batch, len(batch) - size) if len(batch) > size else [batch]
    return parts[-1] if len(parts[-1]) <= size else split(parts[-1], size)[-1]
