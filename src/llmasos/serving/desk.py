"""The desk: what wire formats ask, whatever the format. Models by name, whose request it is, and until when.

Models are opened when they are first asked for, as far as memory reaches; the one that was not used for longest is
closed for another, unless it is pinned.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from ..core import hardware
from ..core.config import ServeConfig, parse_size
from ..core.errors import BundleError, UnavailableError, UsageError, did_you_mean
from .grammar import Trying
from .guard import Entry
from .served import Asked, Parts, Served
from .turns import Computing

if TYPE_CHECKING:
    from fastapi import Request

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
PATIENCE = 60.0
"""Seconds without a step after which a model with work counts as stalled."""


class UnknownModelError(UsageError):
    """There is no such model on this server."""


class GoneError(Exception):
    """The client has left; nobody reads an answer."""


@dataclass
class Shelf:
    """A model that the server knows, open or not.

    Args:
        name: what clients call it.
        opens: opens it.
        pinned: whether it stays open.
        bytes: what it took when it was open; before that, what its files have.
        base: of an adapter, the model that it lies on, with which it is opened and closed.
        refused: of an adapter that is damaged, how.
    """

    name: str
    opens: Callable[[], Parts]
    bytes: int
    pinned: bool = False
    base: Shelf | None = None
    refused: BundleError | None = None
    served: Served | None = None
    used: float = 0.0
    opened_seconds: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _inside: int = 0

    def weigh(self, taken: int) -> None:
        """Say what was taken of this process's memory when it was opened."""
        self._inside, outside = taken, self.served.bytes_outside if self.served else 0
        self.bytes = max(self.bytes, taken + outside)

    @property
    def held(self) -> int:
        """Bytes that it takes now: those that it took, or a program beside this one has come to, and its cache."""
        if self.served is None:
            return 0
        return max(self.bytes, self._inside + self.served.bytes_outside) + self.served.cache_bytes


class Desk:
    """The server's models, and what is asked of them.

    Args:
        shelves: the models by name; the first is the default.
        config: bounds.
    """

    def __init__(self, shelves: Mapping[str, Shelf], config: ServeConfig) -> None:
        self.shelves, self.config = dict(shelves), config
        self.started = time.time()
        self.inflight = 0
        self.draining = False
        self._room = asyncio.Lock()
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="texts")
        self._trying = Trying()
        several = sum(shelf.base is None for shelf in self.shelves.values()) > 1
        self._computing = Computing() if several else None
        self.memory = parse_size("memory", config.memory) if config.memory else int(0.8 * hardware.memory_available())

    # -- models -------------------------------------------------------------------------------------

    def shelf(self, name: str | None = None) -> Shelf:
        """Return what is known of a model, open or not; without a name of the default one.

        Raises:
            UnknownModelError: there is no such model.
        """
        name = name or next(iter(self.shelves))
        if name not in self.shelves:
            known = ", ".join(self.shelves)
            raise UnknownModelError(f"there is no model {name!r}",
                                    hint=f"{did_you_mean(name, self.shelves)}known: {known}")  # fmt: skip
        return self.shelves[name]

    async def model(self, name: str | None = None) -> Served:
        """Return a model, opened if it is not yet; without a name the default one.

        Raises:
            UnknownModelError: there is no such model.
            UnavailableError: it does not fit into memory beside those that are at work, or cannot be opened.
            BundleError: it is damaged.
        """
        shelf = self.shelf(name)
        whole = shelf.base or shelf
        whole.used = time.monotonic()
        async with whole.lock:
            if whole.served is None or whole.served.scheduler.state(1e9) == "closed":
                await self._open(whole)
            if shelf.served is None:
                assert shelf.refused is not None
                raise shelf.refused.with_traceback(None)
            return shelf.served

    async def open_pinned(self) -> None:
        """Open what is to stay open; errors as for ``model``, but for adapters that are damaged."""
        for shelf in self.shelves.values():
            if shelf.pinned:
                await self.model((shelf.base or shelf).name)

    def _with_adapters(self, shelf: Shelf) -> list[Shelf]:
        return [shelf, *(one for one in self.shelves.values() if one.base is shelf)]

    async def _open(self, shelf: Shelf) -> None:
        """Open a model, and the adapters over it."""
        async with self._room:
            self._make_room(shelf)
            before, start = hardware.resident_memory(), time.monotonic()
            # in a thread that ends, and OpenMP's own with it: where there are more of them than cores, they sleep
            # between any two operations, and a model that writes lost a third of its speed
            apart = ThreadPoolExecutor(1, thread_name_prefix="opening")
            try:
                parts = await asyncio.get_running_loop().run_in_executor(apart, shelf.opens)
            finally:
                apart.shutdown(wait=False)  # who is cancelled here does not hold up everybody
            shelf.served = Served(shelf.name, parts, self.config, self._pool, self._trying, computing=self._computing)
            shelf.opened_seconds = time.monotonic() - start
            taken = hardware.resident_memory() - before
            for one in self._with_adapters(shelf)[1:]:
                one.refused = parts.refused.get(one.name)
                if one.refused is not None:
                    _LOG.warning("%s is not served: %s", one.name, one.refused)
                    continue
                own = parts.adapters[one.name]
                one.served = Served(one.name, own, self.config, self._pool, self._trying, shelf.served, self._computing)
                one.bytes, taken = own.own_bytes, taken - own.own_bytes
            shelf.weigh(taken)
            _forget()

    def _make_room(self, wanted: Shelf) -> None:
        needed = sum(one.bytes for one in self._with_adapters(wanted))
        while (used := self.used_bytes) + needed > self.memory:
            idle = [one for one in self.shelves.values() if one.served and not one.base and self._is_idle(one)]
            if not idle:
                raise UnavailableError(
                    f"{wanted.name} needs {needed / 1e6:,.0f} MB, and {max(0, self.memory - used) / 1e6:,.0f} MB "
                    f"of {self.memory / 1e6:,.0f} MB are free",
                    retry_after=5,
                )
            self._shut(min(idle, key=lambda one: one.used))

    def _is_idle(self, shelf: Shelf) -> bool:
        """Say whether a model can be closed: it is at no work, nor is an adapter over it, and none is pinned."""
        return not any(one.pinned or (one.served and one.served.scheduler.state(1e9) != "idle")
                       for one in self._with_adapters(shelf))  # fmt: skip

    def _shut(self, shelf: Shelf) -> None:
        for one in self._with_adapters(shelf):
            if one.served is not None:
                one.bytes = one.held - one.served.cache_bytes
                one.served.close()
                one.served = None
        _forget()

    @property
    def used_bytes(self) -> int:
        """Memory of the models that are open, by their own accounts."""
        return sum(shelf.held for shelf in self.shelves.values())

    def stalled(self, patience: float) -> list[str]:
        """Name models that have work and make no step."""
        return [s.name for s in self.shelves.values() if s.served and s.served.scheduler.state(patience) == "stalled"]

    @property
    def state(self) -> str:
        """Whether it can be asked: "ready", or "loading", "draining" or "stalled"."""
        if self.draining:
            return "draining"
        if any((shelf.base or shelf).served is None for shelf in self.shelves.values() if shelf.pinned):
            return "loading"
        return "stalled" if self.stalled(PATIENCE) else "ready"

    # -- requests -----------------------------------------------------------------------------------

    def asked(self, request: Request, *, truncate: bool = False) -> Asked:
        """Return whose request this is, and how long it may take."""
        entry: Entry = getattr(request.state, "entry", None) or Entry()
        return Asked(entry.name, self.config.timeout, truncate, entry)

    async def while_there(self, request: Request, work: Awaitable[T]) -> T:
        """Wait for an answer as long as the client does; when it leaves, the work ends within a step.

        Raises:
            GoneError: it has left.
        """
        task, gone = asyncio.current_task(), False
        assert task is not None

        async def leave() -> None:
            nonlocal gone
            await _left(request)
            gone = task.cancel()

        leaving = asyncio.ensure_future(leave())
        try:
            return await work
        except asyncio.CancelledError:
            if not gone:
                raise
            task.uncancel()
            raise GoneError from None
        finally:
            leaving.cancel()

    async def drained(self, until: float) -> bool:
        """Take no new requests, and wait until then for those that are under way; return whether all have ended."""
        self.draining = True
        while self.inflight and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return not self.inflight

    def close(self) -> None:
        """Close all models."""
        for shelf in self.shelves.values():
            if shelf.served is not None:
                self._shut(shelf)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._trying.close()
        if self._computing is not None:
            self._computing.close()


def _forget() -> None:
    """Collect garbage, and have later collections pass over all that is left.

    With torch imported there are hundreds of thousands of objects, and while they are gone through nobody is answered.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


async def _left(request: Request) -> None:
    """Return when the client has left: after the body, that is the only message there can be."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def begun(stream: AsyncIterator[T]) -> AsyncIterator[T]:
    """Return a stream whose first item is there: what is wrong shows before a status has been sent."""
    first = await anext(stream)

    async def whole() -> AsyncIterator[T]:
        yield first
        async for item in stream:
            yield item

    return whole()
