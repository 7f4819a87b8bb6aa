"""An engine that is a server program: started on a port of this machine alone, watched, started anew when it dies.

The program is told a random key, so that nobody else on the machine can use it. When it dies, what it was writing to
is answered with an error, and the next request starts it again: at once, then after longer and longer, and after
``MOST`` deaths in a row no more. It ends with this process, however that ends; see ``core/leash.py``.
"""

from __future__ import annotations

import json
import queue
import secrets
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, ClassVar

from ..core import hardware
from ..core.children import free_port
from ..core.errors import RemoteError, UnavailableError, UsageError
from ..core.leash import leashed, let_go
from .base import Choice, News

MOST = 5
"""Deaths in a row after which a program is left alone."""
PATIENCE = 300.0
"""Seconds that a program may take to open its model."""
PACE = 0.05
"""Seconds that a step waits for news."""


class Supervised(ABC):
    """A ``Batcher`` that asks a server program over HTTP; see ``base.py``.

    A subclass says how the program is started, and how it is asked.
    """

    batches = True
    takes: ClassVar[frozenset[str]]
    how: str
    name: ClassVar[str]
    health: ClassVar[str] = "/health"

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # as long as this
        self._port, self._key = 0, ""
        self._said: queue.SimpleQueue[tuple[_Asked, Any]] = queue.SimpleQueue()
        self._under_way: dict[int, _Asked] = {}
        self._deaths, self._not_before = 0, 0.0
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    # -- what a program says of itself ----------------------------------------------------------------

    @abstractmethod
    def _command(self, port: int) -> list[str]:
        """Return the program and its arguments, to listen on a port of 127.0.0.1."""

    @abstractmethod
    def _environment(self, key: str) -> dict[str, str]:
        """Return what the program is told in its environment: the key, at least."""

    @abstractmethod
    def _first(self, number: int, prompt: Sequence[int], choice: Choice) -> tuple[str, dict[str, Any]]:
        """Return the path and the body by which it is asked for an answer."""

    @abstractmethod
    def _news(self, number: int, event: Mapping[str, Any]) -> tuple[News, tuple[str, dict[str, Any]] | None]:
        """Return what an answer of the program, or an event of it, says; and what it is asked for next, if anything."""

    def _ended(self, number: int) -> None:
        """Forget a request: it has ended, or was given up."""
        del number

    # -- a batcher ------------------------------------------------------------------------------------

    def join(self, number: int, prompt: Sequence[int], choice: Choice) -> None:
        """Begin with a request, in a program that is started again if it has died."""
        self._revive()
        self._ask(number, *self._first(number, prompt, choice))

    def step(self) -> list[News]:
        """Return what has come; wait a moment if nothing has."""
        until, found = time.monotonic() + PACE, list[News]()
        while True:
            try:
                asked, event = self._said.get(timeout=0 if found else max(0.0, until - time.monotonic()))
            except queue.Empty:
                self._check()
                return found
            if self._under_way.get(asked.number) is not asked:
                continue  # given up meanwhile
            if isinstance(event, Exception):
                self._check(wait=1.0)
                found.append(News(asked.number, (), error=self._fault(event)))
                self._forget(asked.number)
                continue
            news, more = self._news(asked.number, event)
            found.append(news)
            if news.reason:
                self._forget(asked.number)
                self._deaths = 0
            elif more is not None:
                self._ask(asked.number, *more)

    def drop(self, number: int) -> None:
        """Give up a request: the program sees that nobody listens, and ends its work."""
        if (asked := self._under_way.get(number)) is not None:
            self._forget(number)
            asked.close()

    def bytes_outside(self) -> int:
        """Return the memory of the program, and of what it has started."""
        process = self._process
        return 0 if process is None else hardware.resident_memory_of(process.pid)

    def close(self) -> None:
        """End the program."""
        for number in list(self._under_way):
            self.drop(number)
        self._end()
        self._log.close()

    def _forget(self, number: int) -> None:
        self._under_way.pop(number, None)
        self._ended(number)

    def _ask(self, number: int, path: str, body: dict[str, Any]) -> None:
        self._under_way[number] = _Asked(number, self._port, self._key, path, body, self._said)

    def _fault(self, error: Exception) -> Exception:
        if isinstance(error, _Refused):
            return UsageError(f"{self.name} refuses the request: {error}", hint="other options")
        return RemoteError(f"{self.name} broke off: {type(error).__name__}", hint="ask again")

    # -- its life -------------------------------------------------------------------------------------

    def _check(self, wait: float = 0.0) -> None:
        """Raise if the program has died; ``wait``: for so long, where there are signs of it.

        Raises:
            UnavailableError: it has; all requests are forgotten.
        """
        if self._process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait)
        if (code := self._process.poll()) is None:
            return
        raise self._died(f"signal {code - 128}" if code > 128 else f"exit code {code}")

    def _died(self, why: str) -> UnavailableError:
        """Forget everything; return what those who wait are told."""
        lines = self._lines()
        self._end()
        for number in list(self._under_way):
            self._forget(number)
        self._deaths += 1
        pause = 0.0 if self._deaths == 1 else min(60.0, 2.0 ** (self._deaths - 1))
        self._not_before = time.monotonic() + pause
        told = f": {lines[-1][:300]}" if lines else ""
        return UnavailableError(f"{self.name} died ({why}){told}", retry_after=max(1, int(pause)))

    def _revive(self) -> None:
        """Start the program if it does not run.

        Raises:
            UnavailableError: it died too often, or a moment ago.
        """
        self._check()
        if self._process is not None:
            return
        if self._deaths >= MOST:
            raise UnavailableError(f"{self.name} died {self._deaths} times in a row, and is not started again",
                                   retry_after=600, hint="see why, and start the server again")  # fmt: skip
        if (left := self._not_before - time.monotonic()) > 0:
            raise UnavailableError(f"{self.name} died, and is started again", retry_after=int(left) + 1)
        self._start()

    def _start(self) -> None:
        """Start the program, and wait until it answers.

        Raises:
            UnavailableError: it does not.
        """
        self._log.seek(0)
        self._log.truncate()
        self._key, self._port = secrets.token_urlsafe(32), free_port()
        self._process = leashed(
            self._command(self._port), stdout=self._log, stderr=self._log, environment=self._environment(self._key)
        )
        until = time.monotonic() + PATIENCE
        while not self._answers():
            self._check()
            if time.monotonic() > until:
                raise self._died(f"no answer for {PATIENCE:g} s")
            time.sleep(PACE)

    def _answers(self) -> bool:
        with closing(HTTPConnection("127.0.0.1", self._port, timeout=5)) as connection:
            try:
                connection.request("GET", self.health, headers={"Authorization": f"Bearer {self._key}"})
                return connection.getresponse().status == 200
            except (OSError, HTTPException):
                return False

    def _end(self) -> None:
        """End the program, whatever it is doing, by closing what it is held by."""
        if (process := self._process) is None:
            return
        self._process = None
        let_go(process)

    def _lines(self) -> list[str]:
        self._log.seek(0)
        return [line for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]


class _Refused(Exception):
    """The program answered with an error; ``str`` is its message."""


class _Asked:
    """A request to the program, in a thread that hands over what comes; see ``Supervised``."""

    def __init__(
        self, number: int, port: int, key: str, path: str, body: dict[str, Any],
        said: queue.SimpleQueue[tuple[_Asked, Any]],
    ) -> None:  # fmt: skip
        self.number = number
        self._path, self._body, self._key, self._said = path, body, key, said
        self._connection = HTTPConnection("127.0.0.1", port)
        threading.Thread(target=self._run, name=f"engine {number}", daemon=True).start()

    def _run(self) -> None:
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            self._connection.request("POST", self._path, json.dumps(self._body), headers)
            response = self._connection.getresponse()
            if response.status != 200:
                self._said.put((self, _Refused(_message(response.read()))))
                return
            for event in _events(response):
                self._said.put((self, event))
            raise ConnectionError  # heard by nobody where the answer is whole
        except Exception as error:  # whatever it is, nobody may be left waiting
            self._said.put((self, error))
        finally:
            self._connection.close()

    def close(self) -> None:
        """Leave: the program's next write fails, by which it knows."""
        with suppress(OSError, AttributeError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)


def _events(response: HTTPResponse) -> Iterator[Any]:
    """Yield the answer, or, of a stream, its events."""
    if not response.getheader("content-type", "").startswith("text/event-stream"):
        yield json.loads(response.read())
        return
    for line in response:
        data = line.decode().strip().removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if data.startswith("{"):
            yield json.loads(data)


def _message(body: bytes) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["message"])[:300]
    return body.decode(errors="replace")[:300]
