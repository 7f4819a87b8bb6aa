"""What a wire format of the server is: routes that turn requests into calls of ``serving/desk.py`` and answers back.

A file beside this one is one format. It knows nothing of queues, keys or models: the desk does. Errors are raised as
this project's own; ``failure`` words them as clients of the format expect.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..core.errors import UsageError

if TYPE_CHECKING:
    from fastapi import APIRouter

    from ..serving.desk import Desk


@dataclass(frozen=True)
class Failure:
    """What went wrong, as HTTP has it.

    Args:
        status: the HTTP status.
        code: one word for machines: ``context_length_exceeded``, ``model_not_found``, ``queue_full``, ...
        message: what is wrong, and what to do.
        param: the field of the request that is wrong, where there is one.
        retry_after: seconds, where it is worth coming again.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: int | None = None


@dataclass(frozen=True)
class Contract:
    """How a cloud runs the server in a container: it starts it, checks by itself who asks, and calls some routes.

    Args:
        routes: the paths that it calls. A server behind it answers these alone, without a key.
        port: where it looks for the server.
        model: the folder where it has put the model.
    """

    routes: tuple[str, ...]
    port: Callable[[], int]
    model: Callable[[], Path]


class Refused(UsageError):
    """A request that asks for what cannot be had.

    Args:
        message: what is wrong.
        param: the field that is wrong; None for the whole.
        code: one word for machines.
        hint: what to do.
    """

    code: str

    def __init__(
        self, message: str, param: str | None, *, code: str = "unsupported_parameter", hint: str | None = None
    ):
        super().__init__(message, hint=hint)
        self.param, self.code = param, code


class Protocol(ABC):
    """One wire format."""

    name: ClassVar[str]
    prefixes: ClassVar[tuple[str, ...]]
    """Paths that are its own begin with one of these; so its errors are known as its own."""
    probes: ClassVar[tuple[str, ...]] = ()
    """Paths that need no key: they tell whether the server lives and is ready, and nothing else."""
    contract: ClassVar[Contract | None] = None
    """How a cloud runs containers that speak it, where one does."""

    @abstractmethod
    def routes(self, desk: Desk) -> APIRouter:
        """Return its routes."""

    def failure(self, failure: Failure) -> dict[str, Any]:
        """Return the body of an error; this is OpenAI's."""
        kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
        usual = "invalid_request_error" if failure.status < 500 else "server_error"
        return {
            "error": {
                "message": failure.message,
                "type": kind.get(failure.status, usual),
                "param": failure.param,
                "code": failure.code,
            }
        }
