"""Draw a run's events: a live bar on a terminal, plain lines anywhere else.

Plain lines hold no carriage return and no colour, so that logs stay readable; they come at every
twentieth of the work, or when that takes long, at growing distances from ten seconds on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TextIO

from .core.events import Evaluated, Event, Finished, Note, Phase, Progress, Saved, Step, Trial

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Renderer = Callable[[Event], None]


@contextmanager
def render(
    stream: TextIO | None = None, *, plain: bool = False, clock: Callable[[], float] = time.monotonic
) -> Iterator[Renderer]:
    """Yield a function that draws each event it is given.

    Args:
        stream: where to draw; standard error if not given.
        plain: write plain lines even on a terminal.
        clock: the seconds that plain lines are spaced by.

    Example:
        >>> with render(sys.stdout) as draw:
        ...     draw(Note("2 labels found in the data"))
        2 labels found in the data
    """
    stream = stream or sys.stderr
    if plain or not stream.isatty():
        yield _Lines(stream, clock)
        return
    from rich.console import Console

    console = Console(file=stream)
    if console.is_dumb_terminal:
        yield _Lines(stream, clock)
        return
    with _live(console) as draw:
        yield draw


class _Lines:
    """One line per thing worth knowing."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self.stream, self.clock = stream, clock
        self.phase, self.metric = Phase(""), ""
        self._restart()

    def __call__(self, event: Event) -> None:
        text = self._progress(event) if isinstance(event, Step | Progress) else _sentence(event)
        if isinstance(event, Phase):
            self.phase = event
            self._restart()
        if isinstance(event, Evaluated):
            self.metric = _score(event)
        if text:
            print(text, file=self.stream, flush=True)

    def _restart(self) -> None:
        self.shown, self.start = 0, self.clock()
        self.last = self.start

    def _progress(self, event: Step | Progress) -> str:
        if isinstance(event, Step):
            share = event.step / max(event.steps, 1)
            return f"train: {_step(event, self.metric)}" if self._due(share) else ""
        total = self.phase.total
        if not self._due(event.done / total if total else 0.0):
            return ""
        return f"{self.phase.name}: {event.done:,}" + (f" of {total:,} rows" if total else " rows")

    def _due(self, share: float) -> bool:
        """Tell whether a line is due: a twentieth further, or the last one is long ago."""
        now, part = self.clock(), int(share * 20 + 1e-9)
        if part < self.shown:  # Another measure: steps of training after the rows of an evaluation.
            self.shown = 0
        if part == self.shown and now - self.last < max(10.0, (now - self.start) / 20):
            return False
        self.shown, self.last = part, now
        return True


@contextmanager
def _live(console: Console) -> Iterator[Renderer]:
    """Keep one bar at the bottom, with what is worth keeping written above it."""
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description:<8}"), BarColumn(bar_width=12), TextColumn("{task.fields[text]}"))
    metric, phase = "", Phase("")
    # The bar leaves with the run: what stays are the lines. Four frames a second leave the cores to the work.
    with Bar(*columns, console=console, transient=True, refresh_per_second=4) as bar:
        task = bar.add_task("", total=None, text="")

        def draw(event: Event) -> None:
            nonlocal metric, phase
            if isinstance(event, Step):
                text = _step(event, metric, short=True)
                bar.update(task, description="train", total=event.steps, completed=event.step, text=text)
            elif isinstance(event, Progress):
                text = f"{event.done:,}" + (f"/{phase.total:,} rows" if phase.total else " rows")
                bar.update(task, description=phase.name, total=phase.total, completed=event.done, text=text)
            elif isinstance(event, Phase):
                phase = event
                bar.update(task, description=event.name, total=event.total, completed=0, text="")
            if isinstance(event, Evaluated):
                metric = _score(event)
            if not isinstance(event, Phase) and (text := _sentence(event)):
                console.print(_styled(event, text))

        yield draw


def _styled(event: Event, text: str) -> Text:
    from rich.text import Text

    warns = isinstance(event, Note) and event.level != "info"
    style = "yellow" if warns else "green" if isinstance(event, Evaluated) and event.best else ""
    return Text(text, style=style)


def _sentence(event: Event) -> str:
    """Word an event that is worth a line of its own; other events give an empty string."""
    if isinstance(event, Note):
        return event.text if event.level == "info" else f"{event.level}: {event.text}"
    if isinstance(event, Phase):
        return event.name
    if isinstance(event, Evaluated):
        parts = (f"validation loss {event.loss:.4f}", _score(event), "the best so far" if event.best else "")
        return f"epoch {event.epoch:.4g}: " + ", ".join(part for part in parts if part)
    if isinstance(event, Trial):
        return _trial(event)
    if isinstance(event, Saved):
        return f"saved {event.path}"
    if isinstance(event, Finished):
        return f"{event.reason}: {event.steps:,} steps in {duration(event.seconds)}"
    return ""


def _trial(event: Trial) -> str:
    """Word a training of a search: what it tries, or what came of it."""
    if event.status == "begun":
        return f"trial {event.number} of {event.trials}: {worded(event.values)}"
    score = "" if event.value is None else f", {event.metric} {event.value:.4f}"
    return f"trial {event.number} of {event.trials}: {event.status}{score}, {duration(event.seconds)}"


def worded(values: Mapping[str, Any]) -> str:
    """Word options with their values: ``"learning_rate 0.0001, batch_size 32"``."""
    shown = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _step(event: Step, metric: str, *, short: bool = False) -> str:
    """Word a step; ``short`` fits beside a bar on 80 columns."""
    parts = (
        f"{event.step:,}/{event.steps:,}" if short else f"step {event.step:,}/{event.steps:,}",
        "" if short else f"epoch {event.epoch:.2f}",
        f"loss {event.loss:.4f}",
        metric,
        f"{event.rows_per_second:,.0f} rows/s",
        f"{duration(event.seconds_left)} left",
    )
    return "  ".join(part for part in parts if part)


def _score(event: Evaluated) -> str:
    value = event.metrics.get(event.metric)
    return "" if value is None else f"{event.metric} {value:.4f}"


def duration(seconds: float) -> str:
    """Word a time span: ``"8.4 s"``, ``"2:05 min"``, ``"3:07 h"``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60}:{minutes % 60:02d} h"
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d} min"


def followed(events: Generator[Event, None, Any], progress: bool | Renderer) -> Any:
    """Drive a generator of events to its end and return its result."""
    unseen: AbstractContextManager[Renderer] = nullcontext(progress if callable(progress) else lambda _: None)
    with render() if progress is True else unseen as listener:
        try:
            event = next(events)
            while True:
                try:
                    listener(event)
                except BaseException as error:
                    event = events.throw(error)  # Ctrl-C while drawing is Ctrl-C in the run, which knows what to keep
                else:
                    event = next(events)
        except StopIteration as stop:
            return stop.value
