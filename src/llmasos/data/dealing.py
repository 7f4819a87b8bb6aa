"""Work on parts of the data, done here or dealt out to other machines; its results come in order either way.

Reading and encoding hand their parts to ``dealt``. Where nothing else is said they are done here, one after the other,
as they are asked for. A training on a cluster puts its machines in this place for as long as it prepares (``by``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Dealer(Protocol):
    """Does the work on each part, wherever, and yields the results in the order of the parts."""

    def __call__(self, work: Callable[[A], Iterator[B]], parts: Iterable[A]) -> Iterator[B]:
        """Work and its parts are sent to other machines; parts may be taken ahead of their results."""


_DEALER: ContextVar[Dealer | None] = ContextVar("dealer", default=None)


@contextmanager
def by(dealer: Dealer) -> Iterator[None]:
    """Let ``dealt`` use a dealer inside the block."""
    token = _DEALER.set(dealer)
    try:
        yield
    finally:
        _DEALER.reset(token)


def dealt(work: Callable[[A], Iterator[B]], parts: Iterable[A], *, here: bool = False) -> Iterator[B]:
    """Yield what the work gives for each part, in order; ``here`` deals nothing out."""
    dealer = None if here else _DEALER.get()
    if dealer is not None:
        yield from dealer(work, parts)
        return
    for part in parts:
        yield from work(part)
