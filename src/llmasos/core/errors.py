"""Every error that LLMasOS raises on purpose, in one tree.

    LLMasOSError                 what is wrong, then ``hint:`` what to do
    ├── UsageError      ValueError       a wrong option, key, name or combination
    │   └── TooLongError                 a prompt that does not fit into the model's context
    ├── DataError       ValueError       wrong rows: file, row, field, found, expected
    ├── NotFittedError  RuntimeError     a model without a task was asked for an answer
    ├── MissingExtraError ImportError    an optional package is not installed: the pip line
    ├── HardwareError   RuntimeError     the machine lacks what was asked for (memory, disk, device)
    ├── BundleError     ValueError       a model folder that is damaged, unsafe or not a model
    ├── ParityError     ArithmeticError  two ways to compute the same thing disagree: how much, where
    ├── TrainingError   RuntimeError     a run that cannot go on (loss not finite, nothing to learn)
    ├── DeploymentError RuntimeError     a server that does not run as the place it goes to asks
    ├── AnswerError     ValueError       what a model wrote cannot be used: its words
    ├── RemoteError     ConnectionError  a hub, cloud or server that cannot be reached or refused
    │   └── BrokenOffError               an answer broke off while it came: what there was of it
    ├── BusyError       RuntimeError     the server has as much to do as it may: when to come again
    │   └── UnavailableError             it cannot do this now: it closes, loads, or lacks memory
    └── OverdueError    TimeoutError     the time that a request was given is over

Each is also a subclass of the nearest builtin, so ``except ValueError`` keeps working.
``exit_code`` is what the command line returns: 2 where the user must change the input, 1 where
the work failed.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from typing import Any


class LLMasOSError(Exception):
    """Base of all errors here: one line of what is wrong and one of what to do.

    One that a server told of has what the server said besides: its HTTP ``status``, a ``code`` for machines, the field
    of the request (``param``), and the ``request_id`` by which its log knows the request; each None where not known.
    """

    exit_code = 1
    status: int | None = None
    code: str | None = None
    param: str | None = None
    request_id: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Come whole from another process, whatever the arguments it is made with."""
        return _again, (type(self), self.args, vars(self))


def _again(kind: type[LLMasOSError], args: tuple[Any, ...], content: dict[str, Any]) -> LLMasOSError:
    error = kind.__new__(kind, *args)
    vars(error).update(content)
    return error


class UsageError(LLMasOSError, ValueError):
    """An option, key, name or combination that makes no sense."""

    exit_code = 2


class TooLongError(UsageError):
    """A prompt, with the room for its answer, is longer than what the model takes."""


class DataError(LLMasOSError, ValueError):
    """Rows that cannot be used.

    Args:
        message: what is wrong, in one line.
        problems: the single rows, already worded ("train.jsonl, row 3, field label: ..."); the
            first ten are shown.
        count: how many rows are wrong in all, when more were found than ``problems`` lists.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        problems: Iterable[str] = (),
        count: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        listed = list(problems)
        self.count = len(listed) if count is None else count
        self.problems = listed[:10]

    def __str__(self) -> str:
        lines = [self.message, *(f"  {problem}" for problem in self.problems)]
        if self.problems and self.count > len(self.problems):
            lines.append(f"  ... and {self.count - len(self.problems)} more")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class NotFittedError(LLMasOSError, RuntimeError):
    """A model that has no task yet was asked to predict, evaluate or save one."""

    exit_code = 2


class MissingExtraError(LLMasOSError, ImportError):
    """An optional package is missing; the message carries the pip line."""

    exit_code = 2

    def __init__(self, what: str, *, install: str) -> None:
        super().__init__(f"{what} needs a package that is not installed", hint=f"pip install {install}")


class HardwareError(LLMasOSError, RuntimeError):
    """The machine lacks what was asked for: a device, memory, disk space."""


class BundleError(LLMasOSError, ValueError):
    """A model folder that is damaged, unsafe to open or not a model."""

    exit_code = 2


class ParityError(LLMasOSError, ArithmeticError):
    """Two ways to compute the same thing disagree: by how much and where."""


class TrainingError(LLMasOSError, RuntimeError):
    """A run that cannot go on. ``kept``: the model, task and run up to there, where something was learned."""

    kept: tuple[Any, ...] = ()


class DeploymentError(LLMasOSError, RuntimeError):
    """A server that does not run as the place that it goes to asks for."""


class AnswerError(LLMasOSError, ValueError):
    """What a model wrote cannot be used.

    Args:
        text: what it wrote last.
        messages: all that was said up to there.
        calls: of tools that were made.
    """

    def __init__(
        self, message: str, *, text: str, messages: Iterable[dict[str, Any]] = (), calls: Iterable[Any] = (),
        hint: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message, hint=hint)
        self.text, self.messages, self.calls = text, list(messages), list(calls)


class RemoteError(LLMasOSError, ConnectionError):
    """A hub, cloud or server that cannot be reached, or that refused."""


class BrokenOffError(RemoteError):
    """An answer broke off while it came.

    Args:
        text: what had come of it.
    """

    def __init__(self, message: str, *, text: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.text = text


class BusyError(LLMasOSError, RuntimeError):
    """A server has as much to do as it may have.

    Args:
        retry_after: seconds after which there should be room.
    """

    def __init__(self, message: str, *, retry_after: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint or f"come again in {retry_after} s")
        self.retry_after = retry_after


class UnavailableError(BusyError):
    """A server cannot do this now: it is closing, loading, or lacks the memory."""


class OverdueError(LLMasOSError, TimeoutError):
    """The time that a request was given is over."""


class TruncatedWarning(UserWarning):
    """Texts were longer than the model takes, and answered from their beginnings."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? "`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, [str(k) for k in known], n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'? " if near else ""


def shown(value: Any) -> str:
    """Word a value for an error message, cut to a line's length."""
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{type(value).__name__} {text[:57] + '...' if len(text) > 60 else text}"


def warn(text: str, category: type[Warning]) -> None:
    """Warn of something at the user's own line: the nearest that is not of this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == __name__.partition(".")[0]:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
