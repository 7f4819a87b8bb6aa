"""What an exporter is: one format, written from a transformers model, and the engine that runs what it wrote.

An exporter only writes. Whether what it wrote is right is decided in one place, ``export.py``, for all formats alike.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..core import plugins
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
        max_length: the longest text in tokens, for a format of fixed lengths.
    """

    model: Any
    task: Task
    tokenizer: Any
    calibration: Encoded | None = None
    kept: tuple[str, ...] = ()
    max_length: int = 512

    def example(self) -> dict[str, torch.Tensor]:
        """Return inputs to trace the model with: sizes above 1, which a trace would take for constants."""
        import torch

        names = self.tokenizer.model_input_names
        ids = torch.arange(2 * 16).reshape(2, 16) % (self.model.config.vocab_size - 2) + 1
        out = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if getattr(self.model.config, "is_encoder_decoder", False):
            out["decoder_input_ids"] = ids
        return out | ({"token_type_ids": torch.zeros_like(ids)} if "token_type_ids" in names else {})

    def prompt(self) -> dict[str, torch.Tensor]:
        """Return two prompts of unequal length to trace a decoder with, the shorter one behind padding."""
        inputs = {name: self.example()[name] for name in ("input_ids", "attention_mask")}
        inputs["attention_mask"][0, 0] = 0  # or the trace would do without a mask
        return inputs

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
        more: what the engine must know besides, as JSON types.
    """

    files: list[str]
    notes: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


class Exporter(ABC):
    """One format."""

    target: ClassVar[str]
    """Its name, as in ``--target``."""
    engine: ClassVar[str]
    """The engine that runs what it writes."""
    light: ClassVar[bool] = False
    """Whether ``llmasos-edge`` runs what it writes, and the folder says what to install for it."""
    requires: ClassVar[tuple[str, ...]]
    """Packages that it imports."""
    extra: ClassVar[str]
    """The extra that brings them."""
    programs: ClassVar[tuple[str, ...]] = ()
    """Programs that a first export runs."""
    precisions: ClassVar[Mapping[str, tuple[str, ...]]]
    """For each kind of model (``kind_of``) that it can hold: the precisions that it can write, the default first."""
    outputs: ClassVar[tuple[str, ...]] = ("row", "token", "embedding", "vocabulary")
    """Of encoders: the kinds of output (``Task.output``) that it can hold."""
    calibrated: ClassVar[tuple[str, ...]] = ()
    """The precisions that need rows to be calibrated on."""
    mixed: ClassVar[tuple[str, ...]] = ()
    """The precisions in which some parts can stay in float32 (``Source.kept``)."""

    def check(self, task: Task, config: Any, precision: str | None) -> str:
        """Return the precision to write, the default if None is asked for.

        Args:
            task: what the model was tuned for.
            config: its transformers configuration.
            precision: what is asked for.

        Raises:
            UsageError: this format cannot hold such a model, or not in this precision; the hint says what it can.
            MissingExtraError: a package is not installed.
        """
        known = self.precisions.get(kind_of(task, config), ())
        if not known or not (task.writes() or task.output in self.outputs):
            raise self.not_held(task, config)
        if precision is not None and precision not in known:
            raise UsageError(f"{self.target} has no {precision!r} for {task.tag}", hint=f"known: {', '.join(known)}")
        if any(importlib.util.find_spec(name) is None for name in self.requires):
            raise MissingExtraError(f"an export to {self.target}", install=f"'llmasos[{self.extra}]'")
        return precision or known[0]

    def not_held(self, task: Task, config: Any) -> UsageError:
        """Return the error of a model that it cannot hold."""
        return UsageError(f"{self.target} holds no {task.tag} model of type {config.model_type}",
                          hint=f"it holds {held(self)}")  # fmt: skip

    def holds(self, task: type[Task]) -> bool:
        """Say whether there are models for a task that it can hold."""
        if task.writes():
            return KINDS[2 if task.auto_class == "AutoModelForSeq2SeqLM" else 1] in self.precisions
        return KINDS[0] in self.precisions and task.output in self.outputs

    def mixes(self, kind: str, precision: str) -> bool:
        """Say whether parts of a model of this kind can stay in float32."""
        del kind
        return precision in self.mixed

    def elsewhere(self) -> dict[str, str]:
        """Return the versions of distributions that take part and need not be installed here."""
        return {}

    @abstractmethod
    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write the model into an existing folder."""


KINDS = ("encoder", "decoder", "encoder-decoder")


def kind_of(task: Task, config: Any) -> str:
    """Return what a model is to an exporter: an encoder, or one that writes, with or without an encoder."""
    if not task.writes():
        return KINDS[0]
    return KINDS[2] if getattr(config, "is_encoder_decoder", False) else KINDS[1]


def held(exporter: Exporter) -> str:
    """Name the tasks that a format holds."""
    tasks = [plugins.load("tasks", name) for name in plugins.names("tasks")]
    return ", ".join(task.tag for task in tasks if exporter.holds(task))


def group_size(model: Any) -> int:
    """Return how many weights of 4 bits share a scale: the most, up to 128, that every matrix can be cut into."""
    import torch

    widths = {module.in_features for module in model.modules() if isinstance(module, torch.nn.Linear)}
    return next((size for size in (128, 64, 32, 16) if all(width % size == 0 for width in widths)), -1)


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
