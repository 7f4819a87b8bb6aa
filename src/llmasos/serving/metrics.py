"""What Prometheus reads: counts of requests, and at each reading the state of every model.

Nothing is counted twice: schedulers keep their own counts, and the desk knows memory; both are looked at when somebody
asks. The names are a promise, listed in docs/guides/serving-securely.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from .buckets import SECONDS, Buckets

if TYPE_CHECKING:
    from .desk import Desk
    from .scheduler import Counts, Scheduler

STATES = ("closed", "idle", "busy", "stalled")

_COUNTERS: tuple[tuple[str, str, Callable[[Counts], float]], ...] = (
    ("works", "Texts or lists of rows that a model was asked for", lambda c: c.requests),
    ("refused", "Works that were refused because too much waited", lambda c: c.refused),
    ("failed", "Works that ended with an error", lambda c: c.failed),
    ("cancelled", "Works given up because their client had left", lambda c: c.left),
    ("overdue", "Works given up because their time was over", lambda c: c.overdue),
    ("tokens_read", "Tokens of prompts and inputs that were read", lambda c: c.tokens_read),
    ("tokens_reused", "Tokens of prompts that had been read before", lambda c: c.tokens_reused),
    ("tokens_written", "Tokens that were written", lambda c: c.tokens_written),
    ("tokens_saved", "Tokens that were not computed, since nobody waited any more", lambda c: c.tokens_saved),
    ("steps", "Batches, or steps of a token, that were computed", lambda c: c.steps),
    ("busy_seconds", "Seconds spent computing", lambda c: c.busy_seconds),
)  # fmt: skip
"""Counters of a model: name, what it is, and where it is in the counts."""

_HISTOGRAMS: tuple[tuple[str, str, Callable[[Counts], Buckets]], ...] = (
    ("queue_seconds", "Seconds that works waited before they began", lambda c: c.waited),
    ("first_token_seconds", "Seconds until the first token, or until the first rows were computed", lambda c: c.first),
    ("token_seconds", "Seconds that each written token took", lambda c: c.each),
    ("batch_rows", "Rows that were computed side by side", lambda c: c.together),
)  # fmt: skip


class Metrics:
    """The numbers of one server.

    Args:
        desk: its models.
        version: of this package.
        patience: seconds without a step after which a model with work counts as stalled.
    """

    def __init__(self, desk: Desk, version: str, patience: float) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("llmasos_requests", "Requests that were answered", ("route", "status"),
                                 registry=self._registry)  # fmt: skip
        self._seconds = Histogram("llmasos_request_seconds", "Seconds from a request to the end of its answer",
                                  ("route",), buckets=SECONDS, registry=self._registry)  # fmt: skip
        self._dropped = Counter("llmasos_contents_dropped", "Contents that were to be written down, and were not",
                                registry=self._registry)  # fmt: skip
        self._registry.register(_Models(desk, version, patience))
        ProcessCollector(registry=self._registry)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def dropped(self) -> None:
        """Count a content that is not written down."""
        self._dropped.inc()

    def page(self) -> bytes:
        """Return all numbers, in Prometheus' text format."""
        return bytes(generate_latest(self._registry))


class _Models:
    """The state of the desk and of each model, as it is when it is asked for."""

    def __init__(self, desk: Desk, version: str, patience: float) -> None:
        self._desk, self._version, self._patience = desk, version, patience

    def collect(self) -> Iterator[Any]:
        """Yield all."""
        desk = self._desk
        yield _gauge("info", "What serves", ("version",), [((self._version,), 1)])
        yield _gauge("started_seconds", "When the server was started, seconds since 1970", (), [((), desk.started)])
        yield _gauge("requests_in_flight", "Requests that are under way", (), [((), desk.inflight)])
        yield _gauge("draining", "Whether the server is stopping", (), [((), desk.draining)])
        yield _gauge("memory_limit_bytes", "Memory that models may take", (), [((), desk.memory)])
        shelves = list(desk.shelves.values())
        opened = [((s.name,), s.held) for s in shelves]
        yield _gauge("model_bytes", "Memory that a model takes, 0 while it is not open", ("model",), opened)
        seconds = [((s.name,), s.opened_seconds) for s in shelves]
        yield _gauge("model_open_seconds", "Seconds that it took to open a model", ("model",), seconds)
        schedulers = [(s.name, s.served.scheduler if s.served else None) for s in shelves]
        own = [(name, one) for name, one in schedulers if one is not None and one.name == name]  # adapters share
        yield _gauge("model_state", "1 for the state that a model is in", ("model", "state"), [
            ((name, state), state == (one.state(self._patience) if one else "closed"))
            for name, one in schedulers for state in STATES
        ])  # fmt: skip
        yield from self._at_work(own)

    def _at_work(self, schedulers: list[tuple[str, Scheduler]]) -> Iterator[Any]:
        for at, name, doc in (
            (0, "waiting", "Works in the queue of a model"), (1, "waiting_tokens", "Their tokens, at the most")
        ):  # fmt: skip
            yield _gauge(name, doc, ("model",), [((model,), one.waiting[at]) for model, one in schedulers])
        for at, name, doc in (
            (0, "running", "Works that are being computed"),
            (1, "running_tokens", "Their tokens, at the most: what the cache of keys and values is kept for"),
        ):
            yield _gauge(name, doc, ("model",), [((model,), one.running[at]) for model, one in schedulers])
        for name, doc, of in _COUNTERS:
            family = CounterMetricFamily(f"llmasos_{name}", doc, labels=("model",))
            for model, one in schedulers:
                family.add_metric((model,), of(one.counts))
            yield family
        for name, doc, buckets_of in _HISTOGRAMS:
            histogram = HistogramMetricFamily(f"llmasos_{name}", doc, labels=("model",))
            for model, one in schedulers:
                buckets = buckets_of(one.counts)
                histogram.add_metric((model,), list(buckets.cumulative()), buckets.total)
            yield histogram


def _gauge(name: str, doc: str, labels: tuple[str, ...], values: Sequence[tuple[tuple[str, ...], float]]) -> Any:
    family = GaugeMetricFamily(f"llmasos_{name}", doc, labels=labels)
    for label, value in values:
        family.add_metric(label, float(value))
    return family
