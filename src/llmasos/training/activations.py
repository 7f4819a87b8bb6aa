"""The frozen layers of a partly trained model run once a row: what they gave is kept on disk for later epochs.

A row's states lie in one file at the place of its tokens, in the precision of the work, so nothing is rounded. A row
is computed in the micro-batch of its first epoch, whenever that happens to be: the first epoch costs nothing extra,
and a run that goes on after it was killed gets the very same bits.
"""

from __future__ import annotations

import errno
import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..architectures.base import Divisible, Prefix
from ..core import hardware
from ..core.errors import UsageError
from ..data.batching import Batch, gather, split
from ..tasks.base import Task
from .setup import Setup

_SHARE = 0.5
"""Of the free disk and of the free memory, in which the system holds a file that is read at random."""


class Kept(NamedTuple):
    """That the outputs of frozen layers are kept, and in which folder."""

    prefix: Prefix
    folder: Path


def with_cache(model: Any, setup: Setup, folder: Path, scale: float = 1.0) -> tuple[Setup, str]:
    """Decide whether the outputs of frozen layers are kept, by ``config.activation_cache``.

    Args:
        model: the model with its frozen layers.
        setup: all else that was decided.
        folder: where the file goes; nothing is written yet.
        scale: rows of the run for each encoded row: above 1 where a sample stands for all.

    Returns:
        The setup with the decision in it, and words for it; none where nothing is frozen or nobody asks.

    Raises:
        UsageError: the cache was asked for, and is impossible.
    """
    config, named = setup.config, "cache" in (setup.config.ways or ())
    left_out = config.ways is not None and config.activation_cache == "auto" and not named
    if config.activation_cache == "off" or config.trainable == "all" or left_out:
        return setup, ""
    prefix, reason = _prefix(model, setup, scale)
    if prefix is not None:
        size = math.ceil(scale * size_of(setup, prefix))
        disk, memory = hardware.disk_free(folder), hardware.memory_available()
        if size > _SHARE * min(disk, memory):
            reason = (
                f"the outputs would take {size / 1e9:.3g} GB, and half of what is free is the most: "
                f"{disk / 1e9:.3g} GB of disk, {memory / 1e9:.3g} GB of memory"
            )
        elif prefix.dropout and config.activation_cache == "auto":
            reason = (
                f"the frozen layers drop out ({prefix.dropout:g}) and differ at each step; activation_cache=on trains "
                "without that, dropout=0 without any"
            )
    if prefix is None or reason:
        if config.activation_cache == "on" or named:
            what = "activation_cache=on" if config.activation_cache == "on" else f"speed={config.speed}"
            raise UsageError(f"{what}, but {reason}", hint=f"{what.partition('=')[0]}=auto takes the cache where it "
                             "can be had")  # fmt: skip
        return setup, f"no activation cache: {reason}"
    how = f"without their dropout ({prefix.dropout:g})" if prefix.dropout else "with the same result"
    what = f"the {prefix.layers} frozen layers run" if prefix.layers > 1 else "the frozen layer runs"
    text = f"activation cache: {what} once a row, {how}; {size / 1e6:.3g} MB of outputs are kept during the run"
    return replace(setup, activations=Kept(prefix, folder)), text


def _prefix(model: Any, setup: Setup, scale: float) -> tuple[Prefix | None, str]:
    """Return what could be kept, or why it would differ or be of no use."""
    epoch = math.ceil(len(setup.train) * scale / setup.config.batch_size)
    if type(setup.task).noised is not Task.noised:
        return None, f"{setup.task.tag} changes its rows at each step"
    if setup.config.augment:
        return None, f"augment={setup.config.augment:g} changes the rows at each step"
    if setup.steps <= epoch:
        return None, "no row is seen twice"
    if setup.backend.world > 1:
        return None, "several processes share the rows anew in each epoch"
    if not isinstance(setup.architecture, Divisible):
        return None, "the forward of this model does not come in two parts"
    prefix = setup.architecture.prefix(model, setup.task.output)
    return prefix, "" if prefix else "the embeddings or the first layer are trained"


def size_of(setup: Setup, prefix: Prefix) -> int:
    """Return the bytes of all rows' states."""
    sequences = len(setup.train.offsets) - 1
    return (sequences if prefix.per_row else setup.train.tokens) * prefix.width * setup.dtype.itemsize


class ActivationCache:
    """The states of rows under the trained layers, computed when a row is first asked for.

    Args:
        setup: what was decided, with ``activations``.
        below: batch -> its states, (places or rows, width), in the precision of the work.
    """

    def __init__(self, setup: Setup, below: Callable[[Batch], Tensor]) -> None:
        kept = setup.activations
        assert kept is not None
        self._train, self._below = setup.train, below
        self._width, self._dtype, self._per_row = kept.prefix.width, setup.dtype, kept.prefix.per_row
        self._at_once = setup.config.micro_batch_size or setup.config.batch_size
        self._blocks = setup.order(0)
        self._home = np.empty(len(setup.train), dtype=np.int64)
        for block, rows in enumerate(self._blocks):
            self._home[rows] = block
        self._filled = np.zeros(len(self._blocks), dtype=bool)
        kept.folder.mkdir(parents=True, exist_ok=True)
        # gone with the process, however it ends
        self._file = tempfile.TemporaryFile(dir=kept.folder, buffering=0)  # noqa: SIM115

    def states(self, batch: Batch, places: int) -> Tensor:
        """Return the states of a batch, in its order: (places, width), or (sequences, width) where one is kept a row.

        Raises:
            OSError: the disk is full.
        """
        homes = np.unique(self._home[batch.rows])
        for block in homes[~self._filled[homes]]:
            self._fill(self._blocks[block])
            self._filled[block] = True
        out = torch.zeros(len(batch.lengths) if self._per_row else places, self._width, dtype=self._dtype)
        for at, here in self._spans(batch, _bytes(out)):
            self._file.seek(at)
            self._file.readinto(here)
        return out

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()

    def _fill(self, rows: np.ndarray[Any, Any]) -> None:
        for part in split(gather(self._train, rows), self._at_once):
            self._store(part)

    def _store(self, batch: Batch) -> None:
        """Compute and keep states; in halves where memory runs out."""
        states: Tensor | None = None
        try:
            with torch.no_grad():
                states = self._below(batch).cpu().contiguous()
        except (RuntimeError, MemoryError) as error:
            if len(batch) == 1 or not hardware.is_out_of_memory(error):
                raise
        if states is None:
            hardware.free_memory()
            for part in split(batch, -(-len(batch) // 2)):
                self._store(part)
            return
        for at, here in self._spans(batch, _bytes(states)):
            self._file.seek(at)
            if self._file.write(here) < len(here):
                raise OSError(errno.ENOSPC, "No space left on device")

    def _spans(self, batch: Batch, states: memoryview) -> list[tuple[int, memoryview]]:
        """Return for each sequence of a batch its place in the file, and its part of the batch's states."""
        sequences = (batch.rows[:, None] * batch.group + np.arange(batch.group)).reshape(-1)
        if batch.places is not None:  # example by example -> longest first
            sequences = sequences[np.argsort(batch.places)]
        each = self._width * self._dtype.itemsize
        starts = each * (sequences if self._per_row else self._train.offsets[sequences])
        ends = each * np.cumsum(np.ones_like(batch.lengths) if self._per_row else batch.lengths, dtype=np.int64)
        begins = np.concatenate([[0], ends[:-1]])
        return [(int(at), states[a:b]) for at, a, b in zip(starts, begins, ends, strict=True)]


def _bytes(states: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU."""
    return states.reshape(-1).view(torch.uint8).numpy().data
