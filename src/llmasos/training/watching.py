"""Everybody who is told of a run beside its caller: the run store, and the reporters.

None of them can end a run. What fails is told once, as a warning, and asked no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .. import runs
from ..core import hardware
from ..core.errors import LLMasOSError
from ..core.events import Evaluated, Event, Note, Started, Step
from ..reporters.base import Reporter

T = TypeVar("T")

_SECONDS = 10.0  # between two looks at the energy, whose counters begin again at zero after some minutes


def watched(
    events: Generator[Event, None, T], id: str, *, model: str, task: str, folder: Path, has_output: bool,
    reporters: Mapping[str, Reporter],
) -> Generator[Event, None, T]:  # fmt: skip
    """Pass a run's events on, and tell the run store and the reporters of them and of its end.

    Args:
        events: the run; its result, or the ``kept`` of what it raises, ends in a ``Run``.
        id: its id in the store.
        model, task, folder, has_output: what the store keeps of it, see ``runs.Entry``.
        reporters: who is told, by name.

    Yields:
        The run's events, and notes.

    Returns:
        The run's result.
    """
    watch = _Watch(dict(reporters))
    watch.register(id, model, task, folder, has_output)
    try:
        result = yield from _passed(events, watch.see)
    except BaseException as error:
        if not watch.has_started and isinstance(error, LLMasOSError):
            watch.forget()
            raise
        kept = getattr(error, "kept", ())
        stopped = "stopped" if kept else "failed"
        status = "interrupted" if isinstance(error, KeyboardInterrupt | GeneratorExit) else stopped
        why = error.message if isinstance(error, LLMasOSError) else f"{type(error).__name__}: {error}"
        for note in watch.finish(status, "" if status == "interrupted" else why, kept[-1] if kept else None):
            error.add_note(note.text)
        raise
    run = result[-1]  # type: ignore[index]
    status = "interrupted" if run.reason == "interrupted" else "done"
    try:
        yield from watch.finish(status, "" if run.reason == status else run.reason, run)
    except KeyboardInterrupt as stop:  # while a reporter sends the last of it: the model is there all the same
        stop.kept = result  # type: ignore[attr-defined]
        raise
    return result


def _passed(events: Generator[Event, None, T], see: Callable[[Event], Iterator[Event]]) -> Generator[Event, None, T]:
    """Pass events on, showing each to ``see``; what is thrown in meanwhile (Ctrl-C) is thrown into the run."""
    try:
        event = next(events)
        while True:
            try:
                yield event
                yield from see(event)
            except BaseException as error:
                event = events.throw(error)
            else:
                event = next(events)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


class _Watch:
    """The store's entry of one run and the reporters that still work."""

    def __init__(self, reporters: dict[str, Reporter]) -> None:
        self._waiting, self._told = reporters, dict[str, Reporter]()
        self._entry: runs.Registered | None = None
        self._metric, self.has_started = "", False
        self._notes: list[Note] = []
        self._began = self._looked = time.perf_counter()
        self._meter = hardware.EnergyMeter()

    def register(self, id: str, model: str, task: str, folder: Path, has_output: bool) -> None:
        try:
            self._entry = runs.Registered.begin(id, model=model, task=task, folder=folder, has_output=has_output)
        except (OSError, LLMasOSError) as error:
            self._notes.append(Note(f"this run is not in the run store: {error}", "warning"))

    def forget(self) -> None:
        """Take the entry out of the store: the run was refused before it began."""
        if self._entry is not None:
            self._entry.forget()

    def see(self, event: Event) -> Iterator[Event]:
        while self._notes:
            yield self._notes.pop()
        if (now := time.perf_counter()) - self._looked > _SECONDS:
            self._looked = now
            self._meter.read()
        if isinstance(event, Started):
            self._metric, self.has_started = str(event.config["metric"]), True
            self._told, self._waiting = self._waiting, {}
            for where in (yield from self._each(lambda reporter: reporter.start(event))):
                yield Note(where)
        if isinstance(event, Step | Evaluated):
            yield from self._each(lambda reporter: reporter.record(event))

    def finish(self, status: str, reason: str, run: Any) -> Iterator[Note]:
        """Complete the entry and end the reporters; ``run`` is what is kept, if anything is."""
        cost = {"seconds": round(time.perf_counter() - self._began, 3), "energy": self._meter.read()}
        learned = {} if run is None else {"steps": run.steps, "metric": self._headline(run)}
        try:
            if self._entry is not None:
                self._entry.finish(status=status, reason=reason, **cost, **learned)
        except (OSError, LLMasOSError) as error:
            yield Note(f"the run store could not be told of the end: {error}", "warning")
        metrics = {} if run is None else run.metrics
        yield from self._each(lambda reporter: reporter.finish(status, metrics))

    def _headline(self, run: Any) -> dict[str, Any] | None:
        """Return the metric that picked the model, with its interval where it has one."""
        if self._metric not in run.metrics:
            return None
        interval = run.report.metrics.get(self._metric) if run.report is not None else None
        ends = {} if interval is None else {"low": interval.low, "high": interval.high}
        return {"name": self._metric, "value": run.metrics[self._metric], **ends}

    def _each(self, call: Callable[[Reporter], T]) -> Generator[Note, None, list[T]]:
        """Call each reporter and return what they gave; one that fails is told of, and asked no more."""
        given = []
        for name, reporter in list(self._told.items()):
            try:
                given.append(call(reporter))
            except Exception as error:
                del self._told[name]
                what = " ".join(f"{type(error).__name__}: {error}".split())
                yield Note(f"{name} is told no more of this run, which goes on: {what}", "warning")
        return given
