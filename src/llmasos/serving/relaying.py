"""Models whose engine chooses tokens and batches requests by itself: works go there, and what comes back is told.

Queue, turns and deadlines stay the scheduler's: no more is handed over than is written side by side.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.errors import UsageError
from ..generation.pieces import Done
from ..generation.relayed import Failed, Relay, Relayed
from .scheduler import Counts, Work


class Relaying:
    """The lane of a model that such an engine writes with.

    Args:
        generator: the model.
        most_rows, most_tokens: what is written side by side; see ``Writing``.
    """

    def __init__(self, generator: Relayed, *, most_rows: int, most_tokens: int) -> None:
        self._relay = Relay(generator.batcher)
        self._most_rows, self._most_tokens = most_rows, most_tokens
        self._works: dict[int, Work] = {}
        self._new: list[Work] = []
        self._number = 0

    @property
    def running(self) -> list[Work]:
        """Works that have begun and not ended."""
        return [*self._works.values(), *self._new]

    def admit(self, take: Callable[[], Work | None], back: Callable[[Work], None]) -> None:
        """Take prompts as far as there is room."""
        used = sum(work.tokens for work in self.running)
        while len(self.running) < self._most_rows and (work := take()) is not None:
            if self.running and used + work.tokens > self._most_tokens:
                back(work)
                return
            self._new.append(work)
            used += work.tokens

    def advance(self, counts: Counts) -> list[Work]:
        """Hand new prompts over, and let the engine write on."""
        while self._new:
            work = self._new[0]
            self._number += 1
            work.content.request.index = self._number
            try:
                self._relay.join(work.content.request)
            except UsageError as error:  # of this request alone
                self._new.pop(0).say(error)
                continue
            self._works[self._number] = self._new.pop(0)
            counts.tokens_read += len(work.content.request.prompt)
        counts.steps, counts.rows = counts.steps + 1, counts.rows + len(self._works)
        ended = []
        for item in self._relay.step():
            work = self._works[item.number]
            work.say(item.error if isinstance(item, Failed) else item)
            if isinstance(item, Done | Failed):
                counts.failed += isinstance(item, Failed)
                ended.append(self._works.pop(item.number))
        counts.tokens_written += self._relay.written
        return ended

    def drop(self, works: list[Work], counts: Counts) -> None:
        """Give up works that have begun: the engine is told at once."""
        for work in works:
            counts.tokens_saved += work.content.left
            self._relay.drop(work.content.request)
        self._works = {number: work for number, work in self._works.items() if work not in works}
        self._new = [work for work in self._new if work not in works]

    def reset(self) -> None:
        """Give up everything, after an error."""
        self._relay.clear()
        self._works, self._new = {}, []
