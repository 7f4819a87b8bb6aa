"""Batches of rows, drawn at random, or of near-equal length from shuffled pools.

A packed forward pays for no padding, so its batches are drawn at random. Where padding costs, all rows are
shuffled, cut into pools of many batches, sorted by length inside each pool and cut into batches, which are
shuffled again. Every epoch sees each row once, every step gets its full batch, and the order is a function of
the seed and the epoch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..core.hardware import to_device

if TYPE_CHECKING:
    import torch

    from .encoding import Encoded

POOL = 8
"""Batches per pool where padding costs: lengths inside a batch are near, and the batches still random. It is not free:
batches of one length are further from the mean gradient. Drawn at random instead, in the packed forward at the same
speed, a Llama on 1,000 instructions came to a perplexity of 690 instead of 838 (benchmarks/chat.py, two seeds)."""


@dataclass(frozen=True)
class Batch:
    """Sequences end to end, longest first. ids, types: (tokens,); lengths: (sequences,).

    ``rows`` are the examples' places in the encoded data; ``targets`` is what the task's loss compares with:
    (examples, ...) in the order of ``rows``, or one array for each sequence, end to end with
    ``target_lengths``, (sequences,). An example is one sequence, in this order; or ``group`` of them, and then
    ``places`` tells for each sequence, example by example, where it is among the sorted ones.
    """

    ids: NDArray[np.int32]
    types: NDArray[np.uint8] | None
    lengths: NDArray[np.int32]
    rows: NDArray[np.int64]
    targets: NDArray[Any] | None = None
    target_lengths: NDArray[np.int32] | None = None
    group: int = 1
    places: NDArray[np.int64] | None = None
    reference: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Number of tokens; nothing is padding."""
        return len(self.ids)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each sequence begins, and the end, (sequences + 1,)."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def target_tensor(self, device: torch.device) -> torch.Tensor:
        """Return the targets as a tensor."""
        assert self.targets is not None
        return to_device(np.ascontiguousarray(self.targets), device)


def epoch_order(
    lengths: NDArray[Any], batch_size: int, seed: int, epoch: int, pool: int = POOL
) -> list[NDArray[np.int64]]:
    """Return the rows of each batch of an epoch; ``pool`` batches at a time are sorted by length (1: none)."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), pool * batch_size):
        drawn = order[start : start + pool * batch_size]
        drawn = drawn[np.argsort(-lengths[drawn], kind="stable")]
        batches += [drawn[i : i + batch_size] for i in range(0, len(drawn), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def sorted_order(lengths: NDArray[Any], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Return the rows of each batch for evaluation: longest first, so that memory is known at once."""
    order = np.argsort(-lengths, kind="stable")
    return (order[i : i + batch_size] for i in range(0, len(order), batch_size))


def gather(data: Encoded, rows: NDArray[np.int64]) -> Batch:
    """Copy examples out of encoded data into one batch, longest sequence first."""
    group = data.group
    sequences = rows if group == 1 else (rows[:, None] * group + np.arange(group)).reshape(-1)
    starts, stops = data.offsets[sequences], data.offsets[sequences + 1]
    order = np.argsort(starts - stops, kind="stable")
    places = None
    if group == 1:
        rows = rows[order]
    else:
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
    spans = [slice(a, b) for a, b in zip(starts[order], stops[order], strict=True)]
    targets, target_lengths = data.targets, None
    if targets is not None and data.target_offsets is not None:
        bounds = data.target_offsets[sequences[order]], data.target_offsets[sequences[order] + 1]
        targets = np.concatenate([targets[a:b] for a, b in zip(*bounds, strict=True)])
        target_lengths = (bounds[1] - bounds[0]).astype(np.int32)
    elif targets is not None:
        targets = targets[rows]
    return Batch(
        ids=np.concatenate([data.ids[span] for span in spans]),
        types=None if data.types is None else np.concatenate([data.types[span] for span in spans]),
        lengths=(stops - starts)[order].astype(np.int32),
        rows=rows,
        targets=targets,
        target_lengths=target_lengths,
        group=group,
        places=places,
        reference=None if data.reference is None else data.reference[rows],
    )


def split(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into parts of at most ``size`` examples: the micro-batches of one step."""
    if len(batch) <= size:
        return [batch]
    whole = encoded(batch)
    parts = [np.arange(a, min(a + size, len(batch))) for a in range(0, len(batch), size)]
    return [replace(part := gather(whole, rows), rows=batch.rows[part.rows]) for rows in parts]


def encoded(batch: Batch) -> Encoded:
    """Return a batch as encoded data, example by example, so that examples of it can be gathered anew."""
    from .encoding import Encoded

    offsets = batch.offsets
    order = np.arange(len(batch.lengths)) if batch.places is None else batch.places
    spans = [slice(offsets[i], offsets[i + 1]) for i in order]
    targets, ends = batch.targets, batch.target_lengths
    if targets is not None and ends is not None:
        bounds = np.concatenate([[0], np.cumsum(ends, dtype=np.int64)])
        targets, ends = np.concatenate([targets[bounds[i] : bounds[i + 1]] for i in order]), ends[order]
    return Encoded(
        ids=np.concatenate([batch.ids[span] for span in spans]),
        types=None if batch.types is None else np.concatenate([batch.types[span] for span in spans]),
        offsets=np.concatenate([[0], np.cumsum(batch.lengths[order], dtype=np.int64)]),
        targets=targets,
        target_offsets=None if ends is None else np.concatenate([[0], np.cumsum(ends, dtype=np.int64)]),
        rows=np.arange(len(batch)),
        group=batch.group,
        reference=batch.reference,
    )


def pad(batch: Batch, pad_id: int, multiple: int = 1) -> dict[str, NDArray[np.int64]]:
    """Lay a batch out as rectangles, (rows, longest), under transformers' names.

    The length is rounded up to a multiple, where steps shall share their shapes.
    """
    ids, inside = rectangle(batch.ids, batch.lengths, pad_id, multiple)
    out = {"input_ids": ids, "attention_mask": inside.astype(np.int64)}
    if batch.types is not None:
        out["token_type_ids"] = rectangle(batch.types, batch.lengths, 0, multiple)[0]
    return out


def rectangle(
    flat: NDArray[Any], lengths: NDArray[np.int32], fill: int, multiple: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Lay sequences that lie end to end below one another, (rows, longest). Returns also where they are."""
    longest = -(-int(lengths.max()) // multiple) * multiple
    inside = np.arange(longest)[None, :] < lengths[:, None]
    out = np.full(inside.shape, fill, dtype=np.int64)
    out[inside] = flat
    return out, inside
