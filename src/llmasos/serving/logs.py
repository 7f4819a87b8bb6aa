"""What a server writes down: a line of JSON for each request, never with a word of it; contents only where wanted."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, TextIO

from .redaction import redacted_all

LARGEST, KEPT = 16 << 20, 5
"""Bytes after which a file of contents is set aside, and how many are."""


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

    Args:
        path: of the file, which only its owner may read.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = _Private(path, maxBytes=LARGEST, backupCount=KEPT, encoding="utf-8", delay=True)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="contents")  # long texts take a while

    def write(self, request: str, key: str, model: str, asked: Any, answered: Any) -> None:
        """Write down one exchange, soon."""
        head = {"time": now(), "id": request, "key": key, "model": model}
        self._thread.submit(self._write, head, asked, answered)

    def _write(self, head: Mapping[str, Any], asked: Any, answered: Any) -> None:
        content = {"asked": redacted_all(_plain(asked)), "answered": redacted_all(_plain(answered))}
        line = json.dumps({**head, **content}, ensure_ascii=False, default=str)
        line = line.encode("utf-8", "backslashreplace").decode()
        self._handler.handle(logging.LogRecord("content", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        """Write what is left."""
        self._thread.shutdown()
        self._handler.close()


class _Private(RotatingFileHandler):
    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding,  # the handler closes it
                    opener=lambda path, flags: os.open(path, flags, 0o600))  # fmt: skip


def _plain(value: Any) -> Any:
    if hasattr(value, "as_dict"):
        return _plain(value.as_dict())
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
