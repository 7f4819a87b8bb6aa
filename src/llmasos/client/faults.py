"""What can go wrong between a client and a server: which error it is, and whether the request may be sent again.

A request is sent again only where nothing of an answer was consumed, and where that does no harm: nobody was reached;
the server refused because it has too much to do (429, 503), or something before it could not reach it (502, 504). Where
the connection ended without an answer, it is sent again unless a model writes: that may have begun. The pauses double,
at random between nothing and the whole; a server that says when to come again (``Retry-After``) is obeyed. All tries
together take no longer than the call may.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar

import httpx2

from ..core.errors import (
    BusyError,
    LLMasOSError,
    OverdueError,
    RemoteError,
    TooLongError,
    UnavailableError,
    UsageError,
)
from .calls import Answered, Call

T = TypeVar("T")
PAUSE = 0.5
"""Seconds of the first pause, at most."""
LONGEST_PAUSE = 8.0
OWN_DEADLINE = "timeout"
"""The code of a server of ours that has worked as long as it may: it would do so again."""


class Tries(Generic[T]):
    """The tries of one call.

    Args:
        call: what is asked.
        url: of the server.
        timeout: seconds for all tries.
        retries: how many there may be after the first.
    """

    def __init__(self, call: Call[T], url: str, timeout: float, retries: int) -> None:
        self._call, self._url, self._timeout, self._retries = call, url, timeout, retries
        self._until, self._made = time.monotonic() + timeout, 0

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            OverdueError: none are.
        """
        left = self._until - time.monotonic()
        if left <= 0:
            raise self._overdue()
        return left

    def read(self, answered: Answered) -> T:
        """Return what an answer means.

        Raises:
            LLMasOSError: it is a refusal, or makes no sense.
        """
        if answered.status not in self._call.statuses:
            raise refusal(answered, self._url)
        try:
            return self._call.read(answered)
        except LLMasOSError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _known(RemoteError(
                f"{self._url}{self._call.path} answers with something else: {_brief(answered.content)}",
                hint="is it a server of models?",
            ), answered) from error  # fmt: skip

    def pause(self, error: Exception) -> float:
        """Return the seconds until the next try.

        Raises:
            LLMasOSError: there is none: what went wrong.
        """
        found = self._own(error)
        at_most = min(LONGEST_PAUSE, PAUSE * 2**self._made)
        pause = random.uniform(0, at_most)
        if isinstance(found, BusyError):
            pause += found.retry_after
        late = time.monotonic() + pause >= self._until
        if self._made >= self._retries or late or not self._is_repeatable(error, found):
            raise found from (None if found is error else error)
        self._made += 1
        return pause

    def _is_repeatable(self, error: Exception, found: LLMasOSError) -> bool:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return True
        if isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
            return not self._call.writes
        return found.status in (429, 502, 503) or (found.status == 504 and found.code != OWN_DEADLINE)

    def _own(self, error: Exception) -> LLMasOSError:
        if isinstance(error, LLMasOSError):
            return error
        if isinstance(error, httpx2.TimeoutException):
            return self._overdue()
        text = str(error) or type(error).__name__
        return RemoteError(f"{self._url} cannot be reached: {text}", hint="is it running?")

    def _overdue(self) -> OverdueError:
        return OverdueError(f"{self._url}{self._call.path} did not answer in {self._timeout:g} s", hint="timeout=...")


def refusal(answered: Answered, url: str) -> LLMasOSError:
    """Return the error that a server's refusal is."""
    told = _told(answered.content)
    said = str(told.get("message") or _brief(answered.content))
    text = f"{url}: {said}" if told else f"{url} answers {answered.status}: {said}"
    status, code = answered.status, told.get("code")
    error: LLMasOSError
    if status in (401, 403):
        error = UsageError(text, hint="give its key, for example in LLMASOS_API_KEY")
    elif status in (429, 503):
        seconds = _retry_after(answered.headers.get("retry-after"))
        kind = BusyError if status == 429 else UnavailableError
        error = kind(text, retry_after=seconds or 0)
    elif status in (408, 504):
        error = OverdueError(text)
    elif 400 <= status < 500:
        error = (TooLongError if code == "context_length_exceeded" else UsageError)(text)
    else:
        error = RemoteError(text)
    error.param = None if told.get("param") is None else str(told["param"])
    error.code = None if code is None else str(code)
    return _known(error, answered)


def _known(error: LLMasOSError, answered: Answered) -> LLMasOSError:
    error.status, error.request_id = answered.status, answered.headers.get("x-request-id")
    return error


def _told(content: bytes) -> Mapping[str, Any]:
    """Return what an error says, in OpenAI's form or simpler ones; nothing where it is in none."""
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    told = told.get("error", told.get("detail", told)) if isinstance(told, Mapping) else {}
    return told if isinstance(told, Mapping) else {"message": told}


def _brief(content: bytes) -> str:
    text = " ".join(content[:400].decode("utf-8", "replace").split())
    return f"{text[:160]} ..." if len(text) > 160 or len(content) > 400 else text or "nothing"


def _retry_after(text: str | None) -> int | None:
    """Return the seconds of a header that has them, or a date."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(0, math.ceil(seconds)) if math.isfinite(seconds) else None
