"""What an exporter is: one format, written from a transformers model, and the engine that runs what it wrote.

An exporter only writes. Whether what it wrote is right is decided in one place, ``export.py``, for all formats alike.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..core.errors import MissingExtraError, UsageError
from ..data.batching import gather, pad
from ..data.encoding import Encoded
from ..tasks.base import Task

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Source:
    """What is exported.

    Args:
        model: the transformers model with the task's head, in float32 on the processor, in evaluation mode.
        task, tokenizer: what it was tuned for, and how it reads.
        calibration: rows from which activations' ranges are found, where the precision needs them.
        kept: names of modules that stay in float32, where a precision would change them too much.
    """

    model: Any
    task: Task
    tokenizer: Any
    calibration: Encoded | None = None
    kept: tuple[str, ...] = ()

    def example(self) -> dict[str, torch.Tensor]:
        """Return inputs to trace the model with: sizes above 1, which a trace would take for constants."""
        import torch

        names = self.tokenizer.model_input_names
        ids = torch.arange(2 * 16).reshape(2, 16) % (self.model.config.vocab_size - 2) + 1
        out = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return out | ({"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in names else {})

    def samples(self, most: int = 300) -> Iterator[dict[str, torch.Tensor]]:
        """Yield the inputs of the calibration's rows, one at a time, so that no padding counts."""
        import torch

        assert self.calibration is not None
        asked = self.example()
        for i in range(min(most, len(self.calibration))):
            # of several sequences of an example each is an input
            inputs = {k: torch.from_numpy(v) for k, v in pad(gather(self.calibration, _one(i)), 0).items()}
            inputs = {k: inputs.get(k, torch.zeros_like(inputs["input_ids"])) for k in asked}
            yield inputs


def _one(i: int) -> Any:
    import numpy as np

    return np.asarray([i])


@dataclass(frozen=True)
class Written:
    """What an exporter has written.

    Args:
        files: names in the artifact's folder; the first is what the engine opens.
        notes: what the user should know.
    """

    files: list[str]
    notes: list[str] = field(default_factory=list)


class Exporter(ABC):
    """One format."""

    target: ClassVar[str]
    """Its name, as in ``--target``."""
    engine: ClassVar[str]
    """The engine that runs what it writes."""
    requires: ClassVar[tuple[str, ...]]
    """Packages that it imports."""
    extra: ClassVar[str]
    """The extra that brings them."""
    precisions: ClassVar[tuple[str, ...]]
    """What it can write, the default first."""
    outputs: ClassVar[tuple[str, ...]]
    """Kinds of output (``Task.output``) that it can write."""
    calibrated: ClassVar[tuple[str, ...]] = ()
    """The precisions that need rows to be calibrated on."""
    mixed: ClassVar[tuple[str, ...]] = ()
    """The precisions in which some parts can stay in float32 (``Source.kept``)."""

    def check(self, task: Task, precision: str) -> None:
        """Raise where this format cannot hold the task, or not in this precision.

        Raises:
            UsageError: it cannot; the hint says what it can.
            MissingExtraError: a package is not installed.
        """
        if task.output not in self.outputs or task.generates:
            raise UsageError(f"{self.target} holds no {task.tag} model", hint=f"it holds {supported(self)}")
        if precision not in self.precisions:
            raise UsageError(
                f"{self.target} has no precision {precision!r}", hint=f"known: {', '.join(self.precisions)}"
            )
        if any(importlib.util.find_spec(name) is None for name in self.requires):
            raise MissingExtraError(f"an export to {self.target}", install=f"'llmasos[{self.extra}]'")

    @abstractmethod
    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write the model into an existing folder."""


def supported(exporter: Exporter) -> str:
    """Name the tasks that a format holds."""
    from ..core import plugins

    tasks = [plugins.load("tasks", name) for name in plugins.names("tasks")]
    return ", ".join(task.tag for task in tasks if task.output in exporter.outputs and not task.generates)


@contextmanager
def still() -> Iterator[None]:
    """Keep the libraries of an export from talking: what matters is measured afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    silence = io.StringIO()  # torch and NNCF print
    try:
        with warnings.catch_warnings(), redirect_stdout(silence), redirect_stderr(silence):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
