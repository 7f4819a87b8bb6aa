"""What happens during a run, as small frozen records that machinery yields and doors render.

The library never prints: the training loop is a generator of these, the command line draws them as
a bar, ``--json`` writes them as lines, a notebook or a studio may do what it likes.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """Base of all events; ``as_dict`` gives JSON-ready content with the event's name."""

    def as_dict(self) -> dict[str, Any]:
        """Return the event as plain JSON types, its name under ``"event"``."""
        content = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return {"event": type(self).__name__.lower(), **content}


@dataclass(frozen=True)
class Note(Event):
    """Something that the user should know ("info") or act on ("warning")."""

    text: str
    level: str = "info"


@dataclass(frozen=True)
class Phase(Event):
    """A new phase begins ("read", "tokenize", "train", "evaluate", "save"); total in rows, if known."""

    name: str
    total: int | None = None


@dataclass(frozen=True)
class Progress(Event):
    """Rows done so far in the current phase."""

    done: int


@dataclass(frozen=True)
class Started(Event):
    """Everything is decided and the first step comes next.

    ``folder`` is where the run will be; ``config`` are the options as they were resolved.
    """

    id: str
    folder: Path
    model: str
    task: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Step(Event):
    """One optimiser step is done. ``loss`` is the mean over the rows of the step; times in seconds."""

    step: int
    steps: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    rows: int
    rows_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Evaluated(Event):
    """The validation data was scored. ``best`` says whether this is the best model so far."""

    step: int
    epoch: float
    loss: float
    metrics: dict[str, float]
    metric: str
    best: bool


@dataclass(frozen=True)
class Trial(Event):
    """One training of a search, when it begins and when it is over.

    ``status``: "begun", "complete", "pruned", "diverged", "lost" (with its processes, on a cluster), "interrupted",
    "out of time". ``value`` and ``loss`` are metric and validation loss of the trial's best model (of its last, if it
    was not completed), ``evaluations`` the metric at each evaluation.
    """

    number: int
    trials: int
    values: dict[str, Any]
    status: str
    metric: str | None = None
    value: float | None = None
    loss: float | None = None
    evaluations: list[float] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Saved(Event):
    """A model folder was written."""

    path: Path


@dataclass(frozen=True)
class Finished(Event):
    """The run is over. ``reason``: "done", "early stopping", "interrupted", "stopped"."""

    reason: str
    steps: int
    seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)


def result_of(events: Generator[Event, None, T]) -> T:
    """Run something to its end without showing its events; return what it returns."""
    while True:
        try:
            next(events)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
