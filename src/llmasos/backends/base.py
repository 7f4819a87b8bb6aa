"""What a way to run a training is: which rows this process computes, and what the processes tell each other.

All processes walk the same steps over the same rows in the same order and hold the same numbers; only forward and
backward are divided. So whatever is not named here needs no word of a backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.environment import process_place
from ..core.errors import UsageError
from ..core.plugins import load

if TYPE_CHECKING:
    from ..data.batching import Batch


class Backend:
    """One process: nothing is divided and nothing is told.

    A subclass is a file in this folder with ``PLUGIN`` at its end. ``rank`` counts from 0; ``world`` is the number of
    processes.
    """

    rank = 0
    world = 1
    local_world = 1
    """Processes on this machine."""
    needs_own_modules = ""
    """Why the model must run through transformers' own forward, if it must: it is cut up between the processes."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def check(self, model: Any, *, joint: bool, adapter: str) -> None:
        """Refuse what this backend cannot train."""

    def threads(self, cores: int) -> int | None:
        """Return the threads of this process on a machine with so many cores; None for the usual."""
        return None if self.local_world == 1 else max(1, cores // self.local_world)

    def device(self, found: torch.device) -> torch.device:
        """Return the device of this process on a machine with such devices."""
        return found

    def open(self, device: torch.device) -> None:
        """Join the other processes, who compute on such devices."""

    def close(self) -> None:
        """Leave the other processes."""

    def share(self, batch: Batch) -> NDArray[np.int64]:
        """Return the places of those examples of a step's batch that this process computes."""
        return np.arange(len(batch))

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all processes, in place; all get the same bits."""
        return tensor

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Return the tensor of every process, in the order of ranks; first sizes may differ, the others not."""
        return [tensor]

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Say of each flag whether it is up in some process."""
        return flags

    def agreed(self, work: Callable[[], Any]) -> Any:
        """Run ``work`` in the main process, the others wait; return its result there and None elsewhere.

        What it raises in the main process ends the others too.
        """
        return work()


def spread(sizes: Sequence[int] | NDArray[Any], world: int) -> list[NDArray[np.int64]]:
    """Deal examples to processes so that each gets about the same number of tokens.

    Largest first, each to the process that has least so far (Graham 1969, longest processing time first).
    """
    loads, hands = [0] * world, [[] for _ in range(world)]  # type: list[int], list[list[int]]
    for place in np.argsort(-np.asarray(sizes), kind="stable"):
        rank = min(range(world), key=lambda r: (loads[r], len(hands[r])))
        hands[rank].append(int(place))
        loads[rank] += int(sizes[place])
    return [np.asarray(sorted(hand), dtype=np.int64) for hand in hands]


def chosen(name: str) -> Backend:
    """Return the backend of a name; ``auto`` is what the processes that were started say.

    Raises:
        UsageError: several processes and ``single``, or one process and a backend for several.
    """
    world = process_place()[2]
    name = ("ddp" if world > 1 else "single") if name == "auto" else name
    backend: Backend = load("backends", name)()
    if backend.world == 1 < world:
        raise UsageError(
            f"backend={name}, but {world} processes were started: each would train the whole model",
            hint="backend=ddp or fsdp, or one process",
        )
    return backend
