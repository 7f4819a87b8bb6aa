"""``llmasos top``: a server as it is now, read from its /metrics."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..core.errors import MissingExtraError, RemoteError
from .output import AsJson, show_json, size

if TYPE_CHECKING:
    from rich.console import RenderableType

EXAMPLES = """
llmasos top
llmasos top --url https://models.example.com --interval 5
llmasos top --once
"""

PREFIX = "llmasos_"


class Reading(NamedTuple):
    """All numbers of a server at one time, by name and by labels."""

    at: float
    values: Mapping[str, Mapping[tuple[str, ...], float]]

    def of(self, name: str, *labels: str) -> float:
        """Return a number; 0 where there is none."""
        return self.values.get(PREFIX + name, {}).get(labels, 0.0)

    def total(self, name: str) -> float:
        """Return the sum over all labels."""
        return sum(self.values.get(PREFIX + name, {}).values())

    def models(self) -> list[str]:
        """Return the names of the models."""
        return [model for (model,) in self.values.get(PREFIX + "model_bytes", {})]


def run(
    *,
    url: Annotated[str, typer.Option(metavar="URL", help="where the server is")] = "http://127.0.0.1:8000",
    interval: Annotated[float, typer.Option(metavar="SECONDS", help="time between two looks", min=0.1)] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="look twice, print once, and end")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch a server: its models, queues and speed.

    A server with keys wants one here too, in LLMASOS_API_KEY. Speeds are those of the time between two looks; Ctrl-C
    ends it.
    """
    looks = _looks(url, interval)
    before = next(looks)
    if as_json:
        show_json(summary(before, next(looks)))
        return
    from rich.console import Console

    console = Console()
    if once or not sys.stdout.isatty():
        console.print(view(url, summary(before, next(looks))))
        return
    from rich.live import Live

    with Live(view(url, summary(before, before)), console=console, screen=True, auto_refresh=False) as live:
        try:
            for now in looks:
                live.update(view(url, summary(before, now)), refresh=True)
                before = now
        except KeyboardInterrupt:
            return


def _looks(url: str, interval: float) -> Iterator[Reading]:
    """Yield what a server says, again and again."""
    from ..client import Client

    with Client(url, timeout=10, retries=0) as client:
        while True:
            yield read(client.metrics())
            time.sleep(interval)


def read(text: str) -> Reading:
    """Return the numbers of a page of /metrics.

    Raises:
        MissingExtraError: what reads it is not installed.
        RemoteError: it is no such page.
    """
    try:
        from prometheus_client.parser import text_string_to_metric_families
    except ImportError as error:
        raise MissingExtraError("llmasos top", install="'llmasos[serve]'") from error
    values: dict[str, dict[tuple[str, ...], float]] = defaultdict(dict)
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name][tuple(sample.labels.values())] = sample.value
    except ValueError as error:
        raise RemoteError(f"that is no page of metrics: {error}", hint="is it llmasos serve?") from error
    if f"{PREFIX}info" not in values:
        raise RemoteError("that is no server of LLMasOS", hint="llmasos top --url http://HOST:PORT")
    return Reading(time.monotonic(), values)


def summary(before: Reading, now: Reading) -> dict[str, Any]:
    """Return what two readings say: what is now, and what happened between them."""
    seconds = max(now.at - before.at, 1e-9)

    def rate(name: str, *labels: str) -> float:
        return max(0.0, now.of(name, *labels) - before.of(name, *labels)) / seconds

    def mean(name: str, model: str) -> float | None:
        """Return the mean between the readings; before the first there is none."""
        count = now.of(f"{name}_count", model) - before.of(f"{name}_count", model)
        return (now.of(f"{name}_sum", model) - before.of(f"{name}_sum", model)) / count if count > 0 else None

    states = now.values.get(f"{PREFIX}model_state", {})
    answered = now.values.get(f"{PREFIX}requests_total", {})
    return {
        "requests_in_flight": int(now.of("requests_in_flight")),
        "requests_per_second": (now.total("requests_total") - before.total("requests_total")) / seconds,
        "requests": int(now.total("requests_total")),
        "refused": int(sum(n for (_, status), n in answered.items() if status in ("401", "403", "429", "503"))),
        "failed": int(sum(n for (_, status), n in answered.items() if status in ("500", "504"))),
        "draining": bool(now.of("draining")),
        "memory_bytes": int(now.total("model_bytes")),
        "memory_limit_bytes": int(now.of("memory_limit_bytes")),
        "models": [
            {
                "model": model,
                "state": next((state for (name, state), on in states.items() if name == model and on), "closed"),
                "bytes": int(now.of("model_bytes", model)),
                "running": int(now.of("running", model)),
                "waiting": int(now.of("waiting", model)),
                "cache_tokens": int(now.of("running_tokens", model)),
                "tokens_read_per_second": rate("tokens_read_total", model),
                "tokens_written_per_second": rate("tokens_written_total", model),
                "batch_rows": mean("batch_rows", model),
                "queue_seconds": mean("queue_seconds", model),
                "first_token_seconds": mean("first_token_seconds", model),
                "token_seconds": mean("token_seconds", model),
                "busy": min(1.0, rate("busy_seconds_total", model)),
                "cancelled": int(now.of("cancelled_total", model)),
                "tokens_saved": int(now.of("tokens_saved_total", model)),
            }
            for model in now.models()
        ],
    }


_LINES = (
    ("state", "state", str), ("running", "running", str), ("waiting", "waiting", str),
    ("cache_tokens", "tokens of the running", lambda n: f"{n:,}"),
    ("tokens_read_per_second", "tokens read/s", lambda n: f"{n:,.0f}"),
    ("tokens_written_per_second", "tokens written/s", lambda n: f"{n:,.0f}"),
    ("batch_rows", "rows of a step", lambda n: f"{n:.1f}"), ("queue_seconds", "in the queue", lambda n: _time(n)),
    ("first_token_seconds", "to the first token", lambda n: _time(n)),
    ("token_seconds", "each token", lambda n: _time(n)), ("busy", "busy", lambda n: f"{n:.0%}"),
    ("cancelled", "given up by clients", str), ("tokens_saved", "tokens saved", lambda n: f"{n:,}"),
    ("bytes", "memory", lambda n: size(n)),
)  # fmt: skip
"""Lines of the view, a column for each model: what of the summary, its name, and how it is worded."""


def view(url: str, told: Mapping[str, Any]) -> RenderableType:
    """Return a summary as a table: a line for the server, and a column for each model."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = (
        f"{url}{'   stopping' if told['draining'] else ''}\n{told['requests_per_second']:,.1f} requests/s   "
        f"{told['requests_in_flight']} in flight   {told['refused']:,} refused, {told['failed']:,} failed of "
        f"{told['requests']:,}\nmemory {size(told['memory_bytes'])} of {size(told['memory_limit_bytes'])}\n"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for one in told["models"]:
        table.add_column(one["model"], justify="right", style="red" if one["state"] == "stalled" else "")
    for name, title, word in _LINES:
        table.add_row(title, *("-" if one[name] is None else word(one[name]) for one in told["models"]))
    return Group(Text(head, style="bold"), table)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.1f} s"
