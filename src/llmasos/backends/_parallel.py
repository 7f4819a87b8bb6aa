"""Data parallelism: every process holds the whole model and computes a part of each step's rows.

The processes come from torchrun (or SLURM, or ``llmasos finetune --nproc``), and speak through torch.distributed:
NCCL between GPUs, gloo between CPUs. Gradients lie in one flat array (``training/optimizer.py``), so one all-reduce a
step adds them up. torch's own wrapper would hang its hooks on parameters whose gradients the packed forward never
gives to autograd; the sum is the same.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.environment import process_place
from ..core.errors import UsageError
from .base import Backend, spread

if TYPE_CHECKING:
    from ..data.batching import Batch

_JOIN, _ANSWER = timedelta(days=1), timedelta(minutes=10)


class DataParallel(Backend):
    """Rows are dealt to the processes by their tokens, gradients are added up."""

    def __init__(self) -> None:
        self.rank, self._local_rank, self.world, self.local_world = process_place()
        self._group: Any = None

    def device(self, found: torch.device) -> torch.device:
        """Return one GPU for each process of a machine, or what all share."""
        return torch.device(found.type, self._local_rank) if found.type in ("cuda", "xpu") else found

    def open(self, device: torch.device) -> None:
        """Join the other processes, who may still be waiting for the main one to tokenise."""
        import torch.distributed as dist
        from torch._C._distributed_c10d import HashStore

        if not dist.is_available():
            raise UsageError("this build of torch cannot speak between processes", hint="backend=single")
        if device.type == "cuda":
            torch.cuda.set_device(self.device(device))
        if not dist.is_initialized():
            alone: dict[str, Any] = {"store": HashStore(), "rank": 0, "world_size": 1} if self.world == 1 else {}
            kind = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(kind, timeout=_JOIN, **alone)
            atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
        dist.all_reduce(torch.zeros(1))  # where they are joined already: the main one may tokenise longer than _ANSWER
        self._group = dist.new_group(timeout=_ANSWER)

    def close(self) -> None:
        """Leave this run; the processes stay joined for the next, as they cannot meet twice in one place."""
        import torch.distributed as dist

        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group if self.world > 1 else None)
        self._group = None

    def share(self, batch: Batch) -> NDArray[np.int64]:
        """Return the places of this process's examples, dealt so that all have about as many tokens."""
        lengths = batch.lengths if batch.places is None else batch.lengths[batch.places]
        return spread(lengths.reshape(-1, batch.group).sum(1), self.world)[self.rank]

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all processes, in place."""
        import torch.distributed as dist

        dist.all_reduce(tensor, group=self._group)
        return tensor

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensor of every process; sizes may differ along the first axis."""
        import torch.distributed as dist

        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(sizes, torch.tensor([len(tensor)]), group=self._group)
        longest = max(int(size) for size in sizes)
        padded = tensor.new_zeros(longest, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        found = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(found, padded, group=self._group)
        return [one[: int(size)] for one, size in zip(found, sizes, strict=True)]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Say of each flag whether it is up in some process."""
        found = self.sum_(torch.tensor(flags, dtype=torch.int32))
        return tuple(bool(flag) for flag in found)

    def agreed(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` in the main process while the others wait."""
        result = work() if self.is_main else None
        self.sum_(torch.zeros(1))
        return result
