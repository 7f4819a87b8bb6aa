"""Batches of rows of near-equal length, drawn from shuffled pools.

All rows are shuffled, cut into pools of many batches, sorted by length inside each pool and cut into
batches, which are shuffled again. So almost nothing is padding, every epoch sees each row once, every
step gets its full batch, and the order is a function of the seed and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .encoding import Encoded

POOL = 64
"""Batches per pool: large enough that lengths inside a batch nearly agree, small enough to stay random."""


@dataclass(frozen=True)
class Batch:
    """Rows end to end, longest first. ids, types: (tokens,); lengths, rows: (rows,).

    ``rows`` are places in the encoded data; ``targets`` is what the task's loss compares with.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.uint8] | None
    lengths: NDArray[np.int32]
    rows: NDArray[np.int64]
    targets: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """Number of tokens; nothing is padding."""
        return len(self.ids)


def epoch_order(lengths: NDArray[np.int32], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Return the rows of each batch of an epoch."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), POOL * batch_size):
        pool = order[start : start + POOL * batch_size]
        pool = pool[np.argsort(-lengths[pool], kind="stable")]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_order(lengths: NDArray[np.int32], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Return the rows of each batch for evaluation: longest first, so that memory is known at once."""
    order = np.argsort(-lengths, kind="stable")
    return (order[i : i + batch_size] for i in range(0, len(order), batch_size))


def gather(data: Encoded, rows: NDArray[np.int64]) -> Batch:
    """Copy rows out of encoded data into one batch, longest first."""
    starts, stops = data.offsets[rows], data.offsets[rows + 1]
    order = np.argsort(starts - stops, kind="stable")
    rows, starts, stops = rows[order], starts[order], stops[order]
    spans = [slice(a, b) for a, b in zip(starts, stops, strict=True)]
    return Batch(
        ids=np.concatenate([data.ids[span] for span in spans]),
        types=None if data.types is None else np.concatenate([data.types[span] for span in spans]),
        lengths=(stops - starts).astype(np.int32),
        rows=rows,
        targets=None if data.targets is None else data.targets[rows],
    )


def split(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into parts of at most ``size`` rows: the micro-batches of one step."""
    if len(batch) <= size:
        return [batch]
    offsets = np.concatenate([[0], np.cumsum(batch.lengths)])
    parts = []
    for a in range(0, len(batch), size):
        b = min(a + size, len(batch))
        tokens = slice(offsets[a], offsets[b])
        parts.append(
            Batch(
                batch.ids[tokens],
                None if batch.types is None else batch.types[tokens],
                batch.lengths[a:b],
                batch.rows[a:b],
                None if batch.targets is None else batch.targets[a:b],
            )
        )
    return parts


def pad(batch: Batch, pad_id: int) -> dict[str, NDArray[np.int64]]:
    """Lay a batch out as rectangles, (rows, longest), under transformers' names."""
    longest = int(batch.lengths.max())
    inside = np.arange(longest)[None, :] < batch.lengths[:, None]
    ids = np.full(inside.shape, pad_id, dtype=np.int64)
    ids[inside] = batch.ids
    out = {"input_ids": ids, "attention_mask": inside.astype(np.int64)}
    if batch.types is not None:
        types = np.zeros(inside.shape, dtype=np.int64)
        types[inside] = batch.types
        out["token_type_ids"] = types
    return out
