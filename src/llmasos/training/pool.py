"""Trainings that run at once on a Ray cluster, each in a process of its own: the trials of a search.

Ray tasks, and not Ray Tune: Tune keeps the state of its searcher as a pickle, draws a trial from those that happen to
have ended, and gives up by a median rule of its own. Here the study stays with ``tuning.py`` and its journal, as
without a cluster; a task trains, sends its events to a desk beside the search, and leaves when the desk says so.
A task is not retried by Ray, which would begin the training anew.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ..cluster import connected, machines, said
from ..core.environment import for_other_machines
from ..core.errors import LLMasOSError
from ..core.events import Event
from .cluster import share

_LEAVING = 10.0  # seconds that trainings have to leave by themselves at the end

Training = Callable[[bool], Generator[Event, None, Any]]
"""Begins a training in a process of the cluster; True where that process is not its first."""


class Lost(Exception):
    """The process of a training is gone, or its machine."""


class _Desk:
    """Where trainings leave their events, and read whether they shall end."""

    def __init__(self) -> None:
        self._events: list[tuple[int, Event]] = []
        self._over: set[int] = set()

    def put(self, number: int, event: Event) -> bool:
        """Take an event; return whether the training shall end."""
        self._events.append((number, event))
        return number in self._over

    def take(self) -> list[tuple[int, Event]]:
        """Return the events since the last time."""
        taken, self._events = self._events, []
        return taken

    def end(self, number: int) -> None:
        """Let a training end at its next event."""
        self._over.add(number)


class Pool:
    """Trainings by number; ``places`` is how many run at once, ``cores`` the processors of each."""

    def __init__(self, ray: Any, most: int, parallel: int | None, threads: int | None) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        found = machines(ray)
        gpus = int(sum(machine.get("GPU", 0) for machine in found))
        self.places = min(most, parallel or gpus or len(found))
        needs = share(ray, self.places, threads)
        self.cores = int(needs["CPU"])
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._ray, self._running = ray, dict[int, Any]()
        self._desk = ray.remote(_Desk).options(num_cpus=0, scheduling_strategy=here).remote()
        self._task = ray.remote(_train).options(
            num_cpus=needs["CPU"], num_gpus=needs.get("GPU", 0), max_retries=0,
            runtime_env={"env_vars": for_other_machines() | {"OMP_NUM_THREADS": str(self.cores)}},
        )  # fmt: skip

    def start(self, number: int, training: Training, *, again: bool = False) -> None:
        """Start a training, as soon as the cluster has room for it."""
        self._running[number] = self._task.remote(self._desk, number, training, again)

    def end(self, number: int) -> None:
        """Let a training end at its next event."""
        self._ray.get(self._desk.end.remote(number))

    def wait(self, seconds: float = 0.2) -> tuple[list[tuple[int, Event]], dict[int, Exception | None]]:
        """Return the events since the last time, and the trainings that have ended, each with its error if any.

        All events of a training are there when it has ended. ``Lost`` is the error where its process is gone.
        """
        refs = {ref: number for number, ref in self._running.items()}
        ready, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=seconds) if refs else ([], [])
        events = self._ray.get(self._desk.take.remote())
        ended = {}
        for ref in ready:
            del self._running[refs[ref]]
            ended[refs[ref]] = self._error(ref)
        return events, ended

    def _error(self, ref: Any) -> Exception | None:
        from ray.exceptions import RayError, RayTaskError

        try:
            self._ray.get(ref)
        except RayTaskError as error:
            return said(error)
        except RayError as error:
            return Lost(" ".join(str(error).split())[:160])
        return None

    def leave(self) -> None:
        """Let all trainings end, and wait for them a little; what is left then ends with the connection."""
        for number in self._running:
            self.end(number)
        until = time.monotonic() + _LEAVING
        while self._running and time.monotonic() < until:
            self.wait(0.5)


@contextmanager
def pooled(cluster: str, most: int, parallel: int | None, threads: int | None) -> Iterator[Pool]:
    """Join a cluster (or start one here) for at most so many trainings at once.

    Args:
        cluster: as for ``cluster.connected``.
        most: trainings in all.
        parallel: trainings at once; one for each GPU, else for each machine, if not given.
        threads: processors of each training; as many as all can have if not given.

    Raises:
        RemoteError: the cluster cannot be reached.
        UsageError: it has not that many processors.
    """
    # Ray prints what machines tell
    with redirect_stdout(sys.stderr), connected(cluster, parallel or 1) as ray:
        pool = Pool(ray, most, parallel, threads)
        try:
            yield pool
        finally:
            pool.leave()


def _train(desk: Any, number: int, training: Training, again: bool) -> None:
    """Run in a process of the cluster."""
    import ray

    events, told = training(again), None
    try:
        for event in events:
            if told is not None and ray.wait([told], timeout=0)[0] and ray.get(told):
                return
            told = desk.put.remote(number, event)
    except LLMasOSError as error:
        if hasattr(error, "kept"):
            error.kept = ()  # a model, which is not sent
        raise
    finally:
        events.close()
        if told is not None:
            ray.get(told)  # in their order: the last one is there when all are
