"""Checkpoints: all that a run needs to go on as if it had never stopped.

A step depends on the weights, the optimiser's state, the seed and its own number alone (``stepper.py``), so a
checkpoint holds the first two and the number, beside what the loop has counted so far. It is written by a thread
from a copy in memory, into a folder that takes its name when it is complete; each file's checksum is in
``state.json``, so that a damaged checkpoint is known for what it is and the one before is taken.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core import atomic
from ..core.config import FinetuneConfig
from ..core.errors import BundleError, LLMasOSError
from ..core.events import Note

STATE, TENSORS = "state.json", "state.safetensors"
_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk: its folder and the content of its ``state.json``."""

    folder: Path
    content: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps that were done."""
        return int(self.content["step"])


def steps_in(folder: Path) -> list[int]:
    """Return the steps of which there are checkpoints in a folder, rising."""
    return sorted(int(path.name[5:]) for path in folder.glob("step-*") if path.name[5:].isdigit())


class Checkpoints:
    """The checkpoints of one run: when one is due, writing it beside the training, the last few kept.

    Args:
        folder: where they go, ``step-N`` each.
        config: ``checkpoint_steps``, ``checkpoint_minutes`` and ``keep_checkpoints``.
        kept: called when the set on disk has changed, with the steps whose best model is still referred to.
        writes: False in a process that leaves the writing to another one.
    """

    def __init__(
        self, folder: Path, config: FinetuneConfig, kept: Callable[[set[int]], None] = lambda _: None, *,
        writes: bool = True,
    ) -> None:  # fmt: skip
        self.folder, self.writes = folder, writes
        self._steps, self._minutes, self._keep = (
            config.checkpoint_steps, config.checkpoint_minutes, config.keep_checkpoints
        )  # fmt: skip
        self._kept = kept
        self._last = time.monotonic()
        self._thread: threading.Thread | None = None
        self._failed: list[str] = []

    def is_due(self, step: int) -> bool:
        """Say whether one shall be written after this step."""
        if not self.writes:
            return False
        if self._steps is not None:
            return step % self._steps == 0
        return bool(self._minutes) and time.monotonic() - self._last >= 60.0 * self._minutes

    def save(self, step: int, tensors: Mapping[str, torch.Tensor], content: Mapping[str, Any]) -> None:
        """Write a state, which nobody may change any more, while the run goes on; waits for the one before."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(step, dict(tensors), dict(content)), daemon=False)
        self._thread.start()
        self._last = time.monotonic()

    def save_parts(self, step: int, tensors: Mapping[str, Any], content: Mapping[str, Any], backend: Any) -> None:
        """Write a state of which each process holds a part: all write, into a folder that the main one names."""
        partial = self.folder / "parts"
        backend.agreed(lambda: shutil.rmtree(partial, ignore_errors=True))
        backend.save(tensors, partial)
        backend.agreed(lambda: self._take_parts(step, partial, content) if self.writes else None)
        self._last = time.monotonic()

    def _take_parts(self, step: int, partial: Path, content: Mapping[str, Any]) -> None:
        def fill(folder: Path) -> None:
            for file in partial.iterdir():
                file.replace(folder / file.name)
            _describe(folder, step, content)

        self._named(step, fill)
        shutil.rmtree(partial, ignore_errors=True)

    def wait(self) -> None:
        """Return when what is being written is on disk, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def notes(self) -> list[Note]:
        """Return what went wrong since the last call: a checkpoint that fails does not end the run."""
        failed, self._failed = self._failed, []
        return [Note(f"no checkpoint was written: {text}; the one before is kept", "warning") for text in failed]

    def at(self, step: int) -> Checkpoint:
        """Open the checkpoint of a step."""
        return _opened(self.folder / f"step-{step}")

    def latest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest whole checkpoint, and what is wrong with newer ones."""
        damaged: list[str] = []
        for folder in reversed(self._folders()):
            try:
                return _opened(folder), damaged
            except BundleError as error:
                damaged.append(error.message)
        return None, damaged

    def referred(self) -> set[int]:
        """Return the steps whose best models the checkpoints refer to."""
        steps = set()
        for folder in self._folders():
            with contextlib.suppress(BundleError):
                steps.add(int(_opened(folder, check=False).content["best_step"]))
        return steps

    def remove(self) -> None:
        """Remove all: the run is complete."""
        self.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return [self.folder / f"step-{step}" for step in steps_in(self.folder)]

    def _write(self, step: int, tensors: dict[str, torch.Tensor], content: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        def fill(folder: Path) -> None:
            save_file(tensors, folder / TENSORS)
            _describe(folder, step, content)

        self._named(step, fill)

    def _named(self, step: int, fill: Callable[[Path], None]) -> None:
        """Let a checkpoint take its name, and remove the oldest."""
        try:
            atomic.write_folder(self.folder / f"step-{step}", fill, overwrite=True)
            for old in self._folders()[: -self._keep]:
                shutil.rmtree(old, ignore_errors=True)
            self._kept(self.referred())
        except (OSError, LLMasOSError, RuntimeError) as error:
            self._failed.append(getattr(error, "message", None) or str(error))


def _describe(folder: Path, step: int, content: Mapping[str, Any]) -> None:
    """Write what a checkpoint is, and the checksums of its files."""
    checksums = {file.name: checksum(file) for file in folder.iterdir()}
    (folder / STATE).write_text(json.dumps({"format": _FORMAT, "step": step, **content, "checksums": checksums}))


def checksum(file: Path) -> str:
    """Return the CRC-32 of a file, which tells damage (it is no seal against forgery)."""
    value = 0
    with file.open("rb") as stream:
        while part := stream.read(1 << 22):
            value = zlib.crc32(part, value)
    return f"{value:08x}"


def _opened(folder: Path, *, check: bool = True) -> Checkpoint:
    """Open a checkpoint.

    Raises:
        BundleError: it is not as it was written.
    """
    hint = "the checkpoint before it is taken"
    try:
        content = json.loads((folder / STATE).read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder} is damaged: {STATE} cannot be read", hint=hint) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise BundleError(f"{folder} is damaged, or of another version", hint=hint)
    for name, value in content["checksums"].items() if check else ():
        if not (folder / name).is_file() or checksum(folder / name) != value:
            raise BundleError(f"{folder} is damaged: {name} is not as it was written", hint=hint)
    return Checkpoint(folder, content)
