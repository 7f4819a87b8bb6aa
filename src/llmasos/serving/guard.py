"""Who may ask: keys, hosts and origins, and how much each key may have at once.

As soon as there is a key, every route but the probes needs one. Without keys only this machine is listened to, and then
a web page must not be able to ask through its visitor's browser: the host that was asked for must be this machine by
name (a name of the page's own may lead here, DNS rebinding), and so must the page, if a page it is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ..core.errors import LLMasOSError, UsageError
from ..core.hosts import is_loopback
from ..protocols.base import Failure
from .keys import Key, KeyFile, owner_of
from .meter import LimitError, Meter

if TYPE_CHECKING:
    from .scheduler import Work


class Times(NamedTuple):
    """When a work arrived, began (None where it never did) and ended, by ``time.monotonic``."""

    arrived: float
    begun: float | None
    ended: float


@dataclass(eq=False)
class Entry:
    """A request that was let in, and what it came to.

    Args:
        name: of its key.
        meter: of its key's limits.
        keep: writes what was asked and answered, where that is wanted.
        model: that was asked.
        tokens: that were read and written.
        times: of its works.
    """

    name: str = ""
    meter: Meter | None = None
    keep: Callable[[str, Any, Any], None] | None = None
    model: str = ""
    tokens: int = 0
    times: list[Times] = field(default_factory=list)
    _left: bool = False
    _works: list[Work] = field(default_factory=list)

    @contextmanager
    def charged(self, model: str, works: Sequence[Work]) -> Iterator[None]:
        """Charge works to the key while they are computed, at their most; what they did not take goes back.

        Raises:
            LimitError: the key has used up its tokens.
        """
        self.model, most = model, sum(work.tokens for work in works)
        if self.meter is not None:
            self.meter.spend(most)
        self._works += works
        try:
            yield
        finally:
            unused, now = sum(work.unused for work in works), time.monotonic()
            if self.meter is not None:
                self.meter.give_back(unused)
            self.tokens += most - unused
            self.times += [Times(work.arrived, work.begun, now) for work in works]

    def leave(self) -> None:
        """Say that it has ended, and that nobody waits for what it asked for; once or more often."""
        for work in self._works:  # a stream that was left between two pieces is not closed at once
            work.left = True
        self._works.clear()
        if self.meter is not None and not self._left:
            self.meter.leave()
        self._left = True


class Guard:
    """Lets requests in.

    Args:
        keys: where they are; None for no keys.
        loopback: whether the server is reached from this machine alone, so that it may do without keys.
        hosts: names, besides this machine's own, by which it may be asked for.
        origins: web pages that may ask, such as https://chat.example.com.

    Raises:
        UsageError: a host or an origin makes no sense.
    """

    def __init__(
        self, keys: KeyFile | None = None, *, loopback: bool = True, hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._keys, self._loopback = keys, loopback
        self._hosts, self._origins = frozenset(map(_host, hosts)), frozenset(map(_origin, origins))
        self._meters: dict[str, Meter] = {}
        self._keyed = bool(keys is not None and keys.current())

    def enter(self, headers: Mapping[str, str]) -> Entry | Failure:
        """Return the entry of a request, or why it is refused."""
        try:
            keys = {} if self._keys is None else self._keys.current()
        except LLMasOSError:
            return Failure(503, "unavailable", "the server cannot read its keys", retry_after=30)
        self._keyed |= bool(keys)  # a server that had keys stays closed when the last is revoked
        if self._hosts and not self._is_host(headers):
            return Failure(403, "host_not_allowed", "this host name is not served here; the server's --allow-host")
        if self._loopback and not self._keyed:
            return self._keyless(headers) or Entry()
        key = owner_of(_secret(headers), keys)
        if key is None:
            given = bool(_secret(headers))
            text = "this key is not known here" if given else "a key is needed: the header Authorization: Bearer lm-..."
            return Failure(401, "invalid_api_key", text)
        return self._metered(key)

    def _keyless(self, headers: Mapping[str, str]) -> Failure | None:
        if not self._is_host(headers):
            return Failure(403, "host_not_allowed", "without keys this server is asked for as localhost or 127.0.0.1; "
                           "the server's --allow-host adds a name")  # fmt: skip
        origin = headers.get("origin")
        if origin is None or self.lists(origin) or is_loopback(_page(origin)):
            return None
        return Failure(403, "origin_not_allowed", "this page may not ask; the server's --allow-origin adds it")

    def _is_host(self, headers: Mapping[str, str]) -> bool:
        host = _bare(headers.get("host", ""))
        return host in self._hosts or is_loopback(host)

    def _metered(self, key: Key) -> Entry | Failure:
        meter = self._meters.get(key.name)
        if meter is None or meter.key != key:  # new, or made again under the same name
            meter = self._meters[key.name] = Meter(key)
        try:
            meter.enter()
        except LimitError as error:
            return Failure(429, "rate_limit_exceeded", error.message, retry_after=error.retry_after)
        return Entry(key.name, meter)

    def lists(self, origin: str | None) -> bool:
        """Say whether a web page was listed; it is then told that it may read answers."""
        return origin is not None and origin.lower() in self._origins


def _secret(headers: Mapping[str, str]) -> str:
    kind, _, secret = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return secret.strip()
    return headers.get("x-api-key") or headers.get("api-key") or ""


def _bare(host: str) -> str:
    """Return a Host header without its port and brackets."""
    found = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::\d*)?|([^:/@\[\]]*)(?::\d*)?", host.strip())
    return (found[1] or found[2] or "").lower() if found else ""


def _page(origin: str) -> str:
    """Return the host of a web page; none where there is no telling."""
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""


def _host(given: str) -> str:
    host = _bare(given)
    if not re.fullmatch(r"[a-z0-9.:_-]+", host) or host != given.strip("[]").lower():
        raise UsageError(
            f"allow_host={given!r} is no name of a host", hint="such as models.example.com, without a port"
        )
    return host


def _origin(given: str) -> str:
    scheme, _, host = given.partition("://")
    if scheme not in ("http", "https") or not _page(given) or re.search("[/?#@]", host):
        raise UsageError(f"allow_origin={given!r} is no origin", hint="such as https://chat.example.com")
    return given.lower()
