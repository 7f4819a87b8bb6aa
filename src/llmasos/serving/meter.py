"""How much a key may ask for: requests and tokens a minute, and requests at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from ..core.errors import BusyError
from .keys import Key


class LimitError(BusyError):
    """A key has used up what it may have."""


class Bucket:
    """So many a minute: full at first, and refilled evenly.

    Args:
        per_minute: how many, which is also the most at once.
        clock: seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = float(per_minute), clock
        self._level, self._at = self._most, clock()

    def wait(self, amount: float) -> float:
        """Return in how many seconds there is so much; 0 for now. What is more than ever fits waits for all of it."""
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._at) * self._most / 60)
        self._at = now
        return max(0.0, (min(amount, self._most) - self._level) * 60 / self._most)

    def take(self, amount: float) -> None:
        """Take out so much; a negative amount goes back."""
        self._level = min(self._most, self._level - amount)


class Meter:
    """What a key has used.

    Args:
        key: its limits.
    """

    def __init__(self, key: Key) -> None:
        self.key = key
        self.inside = 0
        self._requests = None if key.rate is None else Bucket(key.rate)
        self._tokens = None if key.tokens is None else Bucket(key.tokens)

    def enter(self) -> None:
        """Count a request that comes in.

        Raises:
            LimitError: there are as many as may be.
        """
        key = self.key
        if key.concurrent is not None and self.inside >= key.concurrent:
            raise LimitError(f"the key {key.name} may have {key.concurrent} requests at once", retry_after=1)
        if self._requests is not None:
            if wait := self._requests.wait(1):
                raise LimitError(f"the key {key.name} may make {key.rate} requests a minute",
                                 retry_after=math.ceil(wait))  # fmt: skip
            self._requests.take(1)
        self.inside += 1

    def leave(self) -> None:
        """Count a request that has ended."""
        self.inside -= 1

    def spend(self, tokens: int) -> None:
        """Take tokens out, before they are computed.

        Raises:
            LimitError: there are not so many now.
        """
        if self._tokens is None:
            return
        if wait := self._tokens.wait(tokens):
            raise LimitError(f"the key {self.key.name} may use {self.key.tokens} tokens a minute, and this may take "
                             f"{tokens}", retry_after=math.ceil(wait))  # fmt: skip
        self._tokens.take(tokens)

    def give_back(self, tokens: int) -> None:
        """Put back tokens that were not computed after all."""
        if self._tokens is not None:
            self._tokens.take(-tokens)
