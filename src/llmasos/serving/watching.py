"""Who is told of each request when it has ended: numbers, a line of the log, spans, and contents where wanted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .guard import Entry
from .logs import Contents, Lines
from .metrics import Metrics

if TYPE_CHECKING:
    from .tracing import Tracer


class Watch:
    """Tells all that watch.

    Args:
        metrics: numbers.
        lines: the log; None for none.
        contents: what was asked and answered; None where nobody wants to know.
        tracer: spans; None for none.
    """

    def __init__(
        self, metrics: Metrics, lines: Lines | None = None, contents: Contents | None = None,
        tracer: Tracer | None = None,
    ) -> None:  # fmt: skip
        self.metrics, self._lines, self._contents, self._tracer = metrics, lines, contents, tracer

    def begun(self, entry: Entry, number: str) -> None:
        """Let an entry know where its content is written."""
        if self._contents is not None:
            entry.keep = partial(self._contents.write, number, entry.name)

    def ended(
        self, number: str, entry: Entry, headers: Mapping[str, str], began: float, *, method: str, route: str,
        status: int, left: bool,
    ) -> None:  # fmt: skip
        """Tell of a request; ``left`` where its client did not wait for the end."""
        seconds = time.monotonic() - began
        self.metrics.answered(route, status, seconds)
        told: dict[str, Any] = {
            "id": number, "key": entry.name, "method": method, "route": route, "model": entry.model, "status": status,
            "ms": round(seconds * 1e3, 2), "tokens": entry.tokens,
        }  # fmt: skip
        if self._lines is not None:
            self._lines.write("request", told | ({"left": True} if left else {}))
        if self._tracer is not None:
            self._tracer.ended(headers, entry, began, told)

    def failed(self, number: str, error: BaseException) -> None:
        """Tell of an error that is not one of ours."""
        if self._lines is not None:
            self._lines.error(error, id=number)

    def close(self) -> None:
        """Write and send what is left."""
        for one in (self._contents, self._tracer):
            if one is not None:
                one.close()
