"""Everything that is decided about a training before its first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..architectures.base import Architecture
from ..backends.base import Backend
from ..core.config import WAYS, FinetuneConfig
from ..data.batching import POOL, epoch_order
from ..data.dataset import Dataset
from ..data.encoding import Encoded
from ..engines.torch import TorchEngine
from ..tasks.base import Task

if TYPE_CHECKING:
    from .activations import Kept


@dataclass(frozen=True)
class Setup:
    """Everything that is decided before the first step, so that the loop has nothing left to choose."""

    task: Task
    train: Encoded
    evaluation: Encoded | None
    evaluation_rows: Dataset | None
    config: FinetuneConfig
    learning_rate: float
    metric: str
    precision: str
    architecture: Architecture | None
    forward: str
    """Which forward is trained through, or why it is transformers' own."""
    special_ids: frozenset[int]
    pad_id: int
    describe: Callable[[int], str]
    """Words a place in ``train`` for an error message: file, row, line."""
    backend: Backend = field(default_factory=Backend)
    ends: float = math.inf
    """When the last step has to be done, as ``time.perf_counter`` counts."""
    activations: Kept | None = None
    """Where the outputs of frozen layers are kept, if they are."""
    buckets: bool = False
    """Whether the rows of a step are of near-equal length, so that little is padded."""
    compiled: bool = False
    """Whether transformers' own forward is compiled."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass over the rows."""
        return math.ceil(len(self.train) / self.config.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return steps_of(len(self.train), self.config)

    def order(self, epoch: int) -> list[np.ndarray[Any, Any]]:
        """Return the rows of each step of an epoch."""
        return order_of(self.train, self.config, epoch, buckets=self.buckets)

    @property
    def speed(self) -> str:
        """The ways that were settled on, as ``FinetuneConfig.speed`` names them: a run with them is the same run."""
        return ",".join(self.ways) or "plain"

    @property
    def ways(self) -> list[str]:
        """The ways that were settled on, of ``core.config.WAYS``."""
        taken = {"packed": self.architecture, "buckets": self.buckets, "bf16": self.precision == "bfloat16",
                 "compile": self.compiled, "cache": self.activations}  # fmt: skip
        return [name for name in WAYS if taken[name]]

    def engine(self, model: Any) -> TorchEngine:
        """Return what runs the model for an evaluation."""
        return TorchEngine(
            model, self.pad_id, output=self.task.output, precision=self.precision,
            speed="auto" if self.architecture else "plain", backend=self.backend,
        )  # fmt: skip

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the work."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


def steps_of(rows: int, config: FinetuneConfig) -> int:
    """Return the optimiser steps of a whole run over so many rows."""
    steps = math.ceil(config.epochs * math.ceil(rows / config.batch_size))
    return min(steps, config.max_steps or steps)


def order_of(train: Encoded, config: FinetuneConfig, epoch: int, *, buckets: bool) -> list[np.ndarray[Any, Any]]:
    """Return the rows of each step of an epoch; they depend on the seed and the epoch alone."""
    return epoch_order(train.sizes, config.batch_size, config.seed, epoch, POOL if buckets else 1)
