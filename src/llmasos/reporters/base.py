"""What a reporter is: something that is told of a run while it goes on, such as TensorBoard.

It hears of the run through three calls, made of the run's events. Adding one is adding a file beside this one
with a ``PLUGIN``, the class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from ..core import plugins
from ..core.events import Evaluated, Started, Step


class Reporter(Protocol):
    """One place that a run is told to. What it raises after it was made switches it off; the run goes on.

    Making one raises MissingExtraError where its package is missing, and UsageError or RemoteError where it cannot
    work: that is before anything is computed.
    """

    def start(self, run: Started) -> str:
        """Hear of the run and its options; return a sentence that says where the user finds it."""

    def record(self, event: Step | Evaluated) -> None:
        """Hear of a step or an evaluation."""

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """Hear of the end: ``status`` as in the run store, and the metrics of the model that was kept."""


def opened(names: Iterable[str]) -> dict[str, Reporter]:
    """Make the reporters of these names."""
    return {name: plugins.load("reporters", name)() for name in names}


def title(run: Started) -> str:
    """Name a run where people read it: its folder, and the id that tells it from others of that folder."""
    return f"{run.folder.name}-{run.id}"


def scalars(event: Step | Evaluated) -> dict[str, float]:
    """Return the numbers of an event under the names that all reporters use: ``train/loss``, ``eval/accuracy``."""
    if isinstance(event, Evaluated):
        return {"eval/loss": event.loss} | {f"eval/{name}": value for name, value in event.metrics.items()}
    names = ("loss", "learning_rate", "gradient_norm", "rows_per_second", "epoch")
    return {f"train/{name}": getattr(event, name) for name in names}


def final(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of the kept model under the names that all reporters use: ``final/accuracy``."""
    return {f"final/{name}": value for name, value in metrics.items()}


def options(run: Started) -> dict[str, object]:
    """Return what a run is made of, flat."""
    return {"model": run.model, "task": run.task, **run.config}
