"""What a server writes down: a line of JSON for each request, never with a word of it; contents only where wanted."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

from .redaction import redacted_all

LARGEST, KEPT = 16 << 20, 5
"""Bytes after which a file of contents is set aside, and how many are."""
WAITING, CHARACTERS = 1024, 16 << 20
"""Contents that may wait to be written, and how long all of their texts may be."""


def now() -> str:
    """Return the time as logs have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Lines:
    """Lines of JSON on a stream.

    Args:
        stream: standard error, as it is when a line is written, if not given.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def write(self, event: str, fields: Mapping[str, Any]) -> None:
        """Write a line: when, what, and more."""
        line = json.dumps({"time": now(), "event": event, **fields}, default=str)
        out = self._stream or sys.stderr
        out.write(line + "\n")
        out.flush()

    def error(self, error: BaseException, **fields: Any) -> None:
        """Write where something failed, but not its message: that may hold what was asked."""
        self.write("error", {**fields, **where(error)})


def where(error: BaseException) -> dict[str, Any]:
    """Return the kind of an error and the places of the code that it came through, innermost last."""
    error = error.__cause__ or error
    frames = traceback.extract_tb(error.__traceback__)
    return {"error": type(error).__name__, "at": [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-6:]]}


class Plain(logging.Handler):
    """Brings what libraries below say to the same lines.

    Args:
        lines: where it goes.
    """

    def __init__(self, lines: Lines) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; of an error that it carries only where it was."""
        error = record.exc_info[1] if record.exc_info else None
        text = {} if error else {"text": record.getMessage().strip()}
        self._lines.write(record.levelname.lower(), {"logger": record.name, **text, **(where(error) if error else {})})

    @classmethod
    def instead(cls, lines: Lines, *names: str) -> None:
        """Take the place of all other handlers of some loggers."""
        for name in names:
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [cls(lines)], False


class Contents:
    """What was asked and answered, personal data replaced, in a file that is set aside when it is large.

    Texts are made ready and written by a thread, since long ones take a while. Where they come faster than it can, or
    cannot be written, exchanges are dropped: the file and the log say how many.

    Args:
        path: of the file, which only its owner may read.
        lines: the log; None for none.
        dropped: told of each exchange that is dropped.
    """

    def __init__(
        self, path: Path, lines: Lines | None = None, dropped: Callable[[], None] = lambda: None
    ) -> None:  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = _Private(path, maxBytes=LARGEST, backupCount=KEPT, encoding="utf-8", delay=True)
        self._lines, self._tell = lines, dropped
        self._changed = threading.Condition()
        self._waiting: deque[tuple[dict[str, Any], Any, Any, int]] = deque()
        self._characters = self._lost = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="contents", daemon=True)
        self._thread.start()

    def write(self, request: str, key: str, model: str, asked: Any, answered: Any) -> None:
        """Write down one exchange, soon, if not too much waits."""
        head = {"time": now(), "id": request, "key": key, "model": model}
        characters = _characters(asked) + _characters(answered)
        with self._changed:
            if len(self._waiting) >= WAITING or (self._waiting and self._characters + characters > CHARACTERS):
                self._drop()
                return
            self._waiting.append((head, asked, answered, characters))
            self._characters += characters
            self._changed.notify()

    def _drop(self) -> None:
        self._lost += 1
        self._tell()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    return
                head, asked, answered, characters = self._waiting.popleft()
                self._characters -= characters
                lost, self._lost = self._lost, 0
            why = "too many waited"
            try:
                self._write({**head, "asked": redacted_all(_plain(asked)), "answered": redacted_all(_plain(answered))})
                if lost:
                    self._write({"time": now(), "dropped": lost})
            except Exception as error:
                with self._changed:
                    self._drop()
                    lost, self._lost = self._lost + lost, 0
                why = type(error).__name__
            if lost and self._lines is not None:
                self._lines.write("contents_dropped", {"count": lost, "why": why})

    def _write(self, content: Mapping[str, Any]) -> None:
        line = json.dumps(content, ensure_ascii=False, default=str)
        line = line.encode("utf-8", "backslashreplace").decode()
        self._handler.handle(logging.LogRecord("content", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Write what is left."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._handler.close()


class _Private(RotatingFileHandler):
    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding,  # the handler closes it
                    opener=lambda path, flags: os.open(path, flags, 0o600))  # fmt: skip

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise what went wrong: logging's own way would print the record."""
        del record
        raise sys.exception() or RuntimeError


def _characters(value: Any) -> int:
    """Return about how long the texts of a content are, which is what it takes while it waits."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return 8 + sum(map(_characters, value)) if isinstance(value, list | tuple) else 8


def _plain(value: Any) -> Any:
    if hasattr(value, "as_dict"):
        return _plain(value.as_dict())
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
