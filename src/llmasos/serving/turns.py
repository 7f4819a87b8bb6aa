"""One thread that computes for all models of the processor, a step of one after a step of another.

Each thread that computes with torch gets OpenMP threads of its own, as many as there are cores, and they stay. With two
models there would be twice as many: then they sleep between any two operations, also where one model alone is at work.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from .scheduler import Counts, Lane, Work

_Step = tuple[Future[list[Work]], Callable[[Counts], list[Work]], Counts]


class Computing:
    """The thread."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[_Step | None] = SimpleQueue()
        # not one of a pool, which the end of this process would wait for
        threading.Thread(target=self._run, name="computing", daemon=True).start()

    def step(self, advance: Callable[[Counts], list[Work]], counts: Counts) -> list[Work]:
        """Let a lane advance, when those that asked before have; see ``Lane``."""
        done: Future[list[Work]] = Future()
        self._asked.put((done, advance, counts))
        return done.result()

    def close(self) -> None:
        """End when what was asked for is done."""
        self._asked.put(None)

    def _run(self) -> None:
        while self._next():
            pass

    def _next(self) -> bool:
        """Take a step, and keep nothing of it: its model may be closed next."""
        if (asked := self._asked.get()) is None:
            return False
        done, advance, counts = asked
        try:
            done.set_result(advance(counts))
        except BaseException as error:
            done.set_exception(error)
        return True


class InTurns:
    """A lane whose steps are taken by such a thread; see ``Lane``."""

    def __init__(self, lane: Lane, computing: Computing) -> None:
        self._lane, self._computing = lane, computing
        self.admit, self.drop, self.reset = lane.admit, lane.drop, lane.reset

    @property
    def running(self) -> list[Work]:
        """Works that have begun and not ended."""
        return self._lane.running

    def advance(self, counts: Counts) -> list[Work]:
        """Compute a step."""
        return self._computing.step(self._lane.advance, counts)
