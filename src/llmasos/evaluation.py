"""The one evaluation loop: batches through an engine into the task's scorer, nothing kept but counts."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .data.batching import gather, sorted_order
from .data.encoding import Encoded
from .engines.base import Engine
from .metrics.base import Scorer
from .tasks.base import Task


def evaluate(
    engine: Engine,
    task: Task,
    data: Encoded,
    *,
    batch_size: int = 64,
    on_rows: Callable[[int], None] | None = None,
) -> tuple[float, Scorer]:
    """Score encoded rows.

    Returns:
        The mean loss (the task's own, in float32) and the filled scorer.
    """
    scorer = task.scorer()
    total, weight, done = 0.0, 0.0, 0
    for rows in sorted_order(data.lengths, batch_size):
        batch = gather(data, rows)
        assert batch.targets is not None
        logits = engine.logits(batch)
        scorer.add(logits, batch.targets)
        total += float(task.loss(torch.from_numpy(logits), torch.from_numpy(batch.targets)))
        weight += task.weight(batch.targets)
        done += len(batch)
        if on_rows:
            on_rows(done)
    return total / max(weight, 1e-12), scorer
