"""The scheduler: what arrives for a model waits in a bounded, fair queue, and one thread computes it in batches.

A ``Lane`` says how: ``answering.py`` by batches of near-equal length, ``writing.py`` by steps of a token. Everything
else is here: who may wait and for how long, whose turn it is, what is given up when its client has left or its time is
over, and a pulse by which others see that the thread goes on.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol
from weakref import WeakKeyDictionary

from ..core.errors import BusyError, LLMasOSError, OverdueError, UnavailableError
from .buckets import ROWS, SECONDS, SHORT, Buckets

CLOSING = 2.0
"""Seconds that a step may take until a server goes without its end."""


class Post:
    """What computing threads say to a loop: it is woken once for all that is said before it looks.

    A step of many rows would wake it for each of them otherwise, and each time wait for its turn with it.

    Args:
        loop: whom they say it to.
    """

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Post]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._wake = partial(loop.call_soon_threadsafe, self._deliver)
        self._closed = loop.is_closed
        self._items: deque[tuple[asyncio.Queue[Any], tuple[Any, ...]]] = deque()
        self._woken = False

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> Post:
        """Return that of a loop; called in it."""
        if loop not in cls._all:
            cls._all[loop] = cls(loop)
        return cls._all[loop]

    def send(self, to: asyncio.Queue[Any], items: tuple[Any, ...]) -> None:
        """Put items into a queue of the loop, from any thread."""
        self._items.append((to, items))
        if not self._woken and not self._closed():
            self._woken = True
            self._wake()

    def _deliver(self) -> None:
        self._woken = False  # first: what is said from here on wakes again
        while self._items:
            to, items = self._items.popleft()
            for item in items:
                to.put_nowait(item)


@dataclass(eq=False)
class Work:
    """One request for one model.

    Args:
        key: whose it is; keys take turns.
        tokens: what it may cost at most: tokens read and written.
        deadline: when nobody waits for it any more, by ``time.monotonic``; None for never.
        left: whether its client has gone; it is given up within a step.
        content: what its lane computes; ``left`` tokens of it are still to be computed, ``begun`` once any are.
    """

    key: str
    tokens: int
    content: Any
    deadline: float | None = None
    left: bool = False
    arrived: float = field(default_factory=time.monotonic)
    begun: float | None = None
    first: bool = False  # whether anything of it has been computed
    _post: Post = field(default_factory=lambda: Post.of(asyncio.get_running_loop()))
    _said: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    @property
    def unused(self) -> int:
        """Tokens that it may cost and did not."""
        return self.tokens if self.begun is None else int(self.content.left)

    def say(self, *items: Any) -> None:
        """Hand over results, or an error, from the computing thread."""
        self._post.send(self._said, items)

    def end(self) -> None:
        """Say that there is no more."""
        self.say(_END)

    async def results(self) -> AsyncIterator[Any]:
        """Yield what is said, until the end; whoever stops listening has left.

        Raises:
            LLMasOSError: the work failed, or was given up.
        """
        try:
            while (item := await self._said.get()) is not _END:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.left = True


_END = object()


@dataclass
class Counts:
    """What a scheduler has done so far, for whoever watches it."""

    requests: int = 0
    refused: int = 0
    failed: int = 0
    left: int = 0
    overdue: int = 0
    tokens_read: int = 0
    tokens_reused: int = 0
    """Tokens of prompts that had been read before."""
    tokens_written: int = 0
    tokens_saved: int = 0
    """Tokens that were not computed, since nobody waited for them any more."""
    steps: int = 0
    rows: int = 0
    """Rows of all steps: over ``steps``, how many went side by side."""
    busy_seconds: float = 0.0
    waited: Buckets = field(default_factory=partial(Buckets, SECONDS))
    """Seconds in the queue."""
    first: Buckets = field(default_factory=partial(Buckets, SECONDS))
    """Seconds until anything was computed: the first token, for a model that writes."""
    each: Buckets = field(default_factory=partial(Buckets, SHORT))
    """Seconds that a written token took."""
    together: Buckets = field(default_factory=partial(Buckets, ROWS))
    """Rows of a step."""


class Waiting:
    """A queue of works in which keys take turns, bounded in requests and in tokens."""

    def __init__(self, most: int, most_tokens: int) -> None:
        self._most, self._most_tokens = most, most_tokens
        self._lines: OrderedDict[str, deque[Work]] = OrderedDict()
        self.requests = self.tokens = 0

    def __iter__(self) -> Iterator[Work]:
        for line in self._lines.values():
            yield from line

    def fits(self, work: Work) -> bool:
        """Say whether there is room; a work that is larger than the bound waits alone."""
        return self.requests < self._most and (self.requests == 0 or self.tokens + work.tokens <= self._most_tokens)

    def add(self, work: Work, *, first: bool = False) -> None:
        """Put a work at the end of its key's line, or, where it was taken too early, back to its beginning."""
        line = self._lines.setdefault(work.key, deque())
        (line.appendleft if first else line.append)(work)
        if first:
            self._lines.move_to_end(work.key, last=False)
        self.requests += 1
        self.tokens += work.tokens

    def take(self) -> Work | None:
        """Return the next work: the oldest of the key whose turn it is."""
        if not self._lines:
            return None
        key, line = next(iter(self._lines.items()))
        work = line.popleft()
        if line:
            self._lines.move_to_end(key)
        else:
            del self._lines[key]
        self.requests -= 1
        self.tokens -= work.tokens
        return work

    def drop(self, gone: Callable[[Work], bool]) -> list[Work]:
        """Take out those that nobody waits for any more."""
        out = [work for work in self if gone(work)]
        if out:
            dropped = set(map(id, out))
            kept = [work for work in self if id(work) not in dropped]
            self._lines.clear()
            self.requests = self.tokens = 0
            for work in kept:
                self.add(work)
        return out


class Lane(Protocol):
    """How works of one model are computed."""

    @property
    def running(self) -> list[Work]:
        """Works that have begun and not ended."""

    def admit(self, take: Callable[[], Work | None], back: Callable[[Work], None]) -> None:
        """Take as much work as can begin now; ``back`` returns what does not fit yet."""

    def advance(self, counts: Counts) -> list[Work]:
        """Compute a batch or a step, and say what came of it; return the works that have ended."""

    def drop(self, works: list[Work], counts: Counts) -> None:
        """Give up works that have begun."""

    def reset(self) -> None:
        """Forget everything, after an error."""


class Scheduler:
    """The works of one model, and the thread that computes them.

    Args:
        name: of the model, for messages.
        lane: how they are computed.
        most_waiting, most_tokens: what may wait.
    """

    def __init__(self, name: str, lane: Lane, *, most_waiting: int, most_tokens: int) -> None:
        self.name, self.counts = name, Counts()
        self._lane, self._waiting = lane, Waiting(most_waiting, most_tokens)
        self._changed = threading.Condition()
        self._closing: LLMasOSError | None = None
        self._pulse = time.monotonic()
        self._rate = 0.0  # tokens a second, as they lately went
        self._thread = threading.Thread(target=self._run, name=f"serving {name}", daemon=True)
        self._thread.start()

    # -- from the event loop ------------------------------------------------------------------------

    def submit(self, work: Work) -> AsyncIterator[Any]:
        """Queue a work; return what it will say.

        Raises:
            BusyError: too much is waiting already; it says when to come again.
            UnavailableError: the model is being closed.
        """
        with self._changed:
            if self._closing is not None:
                raise self._closing
            if not self._waiting.fits(work):
                self.counts.refused += 1
                raise BusyError(
                    f"{self.name} has {self._waiting.requests} requests of {self._waiting.tokens} tokens waiting",
                    retry_after=self._wait_for(work),
                )
            self.counts.requests += 1
            self._waiting.add(work)
            self._changed.notify()
        return work.results()

    def _wait_for(self, work: Work) -> int:
        """Return in how many seconds there should be room, from 1 to 60."""
        ahead = self._waiting.tokens + sum(one.tokens for one in self._lane.running) + work.tokens
        return min(60, max(1, math.ceil(ahead / self._rate / 2))) if self._rate else 1

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests and tokens in the queue."""
        return self._waiting.requests, self._waiting.tokens

    @property
    def running(self) -> tuple[int, int]:
        """Requests that have begun, and their tokens at the most."""
        works = self._lane.running
        return len(works), sum(work.tokens for work in works)

    def state(self, patience: float) -> str:
        """Return "idle", "busy", "stalled" (no step for so many seconds, though there is work), or "closed"."""
        if not self._thread.is_alive():
            return "closed"
        if not self._waiting.requests and not self._lane.running:
            return "idle"
        return "stalled" if time.monotonic() - self._pulse > patience else "busy"

    def close(self, reason: LLMasOSError | None = None) -> None:
        """Refuse new works and give up those that are left; wait for the thread, but not for a long step of it."""
        with self._changed:
            self._closing = reason or UnavailableError(f"{self.name} is being closed", retry_after=5)
            self._changed.notify()
        self._thread.join(CLOSING)

    # -- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._closing is None and not self._waiting.requests and not self._lane.running:
                    self._changed.wait()
                    self._pulse = time.monotonic()
                if self._closing is not None:
                    self._give_up(self._closing)
                    return
            self._pulse = time.monotonic()
            try:
                self._forsake()
                self._lane.admit(self._next, self._back)
                self._advance()
            except Exception as error:
                self._fail(error)

    def _advance(self) -> None:
        if not self._lane.running:
            return
        counts, start = self.counts, time.monotonic()
        read, written, rows = counts.tokens_read, counts.tokens_written, counts.rows
        ended = self._lane.advance(counts)
        now = time.monotonic()
        spent, done = now - start, counts.tokens_read - read + counts.tokens_written - written
        counts.busy_seconds += spent
        for work in (*ended, *(one for one in self._lane.running if one.content.begun)):
            if not work.first:
                work.first = True
                counts.first.add(now - work.arrived)
        if written := counts.tokens_written - written:
            counts.each.add(spent * (counts.rows - rows) / written, written)
        counts.together.add(counts.rows - rows)
        self._rate = 0.9 * self._rate + 0.1 * done / max(spent, 1e-6) if self._rate else done / max(spent, 1e-6)
        for work in ended:
            work.end()

    def _next(self) -> Work | None:
        with self._changed:
            work = self._waiting.take()
        if work is not None and work.begun is None:
            work.begun = time.monotonic()
            self.counts.waited.add(work.begun - work.arrived)
        return work

    def _back(self, work: Work) -> None:
        with self._changed:
            self._waiting.add(work, first=True)

    def _forsake(self) -> None:
        """Give up what nobody waits for: clients that have left, and times that are over."""
        now = time.monotonic()

        def gone(work: Work) -> bool:
            return work.left or (work.deadline is not None and now > work.deadline)

        with self._changed:
            waiting = self._waiting.drop(gone)
        self.counts.tokens_saved += sum(work.tokens for work in waiting)
        begun = [work for work in self._lane.running if gone(work)]
        if begun:
            self._lane.drop(begun, self.counts)
        for work in [*waiting, *begun]:
            if work.left:
                self.counts.left += 1
            else:
                self.counts.overdue += 1
                work.say(OverdueError("the time for this request is over", hint="ask for less, or allow more time"))

    def _fail(self, error: Exception) -> None:
        """Answer what has begun with the error, and go on with the rest."""
        works = self._lane.running
        self._lane.reset()
        self.counts.failed += len(works)
        for work in works:
            work.say(error)

    def _give_up(self, reason: LLMasOSError) -> None:
        works = [*self._waiting.drop(lambda _: True), *self._lane.running]
        self._lane.reset()
        for work in works:
            work.say(reason)
