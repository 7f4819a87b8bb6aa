"""A Ray cluster: how it is joined, and a computation that is dealt out to its machines by Ray Data.

``training/cluster.py`` trains on one.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from .core import hardware
from .core.environment import for_other_machines, quieten_ray
from .core.errors import LLMasOSError, MissingExtraError, RemoteError, UsageError

HERE, _OURS = "local", "auto"
SHARED = "the cluster's machines read and write the files: all must see data and output under the same paths"
_MEMORY = 100_000_000  # bytes that a cluster of this machine sets aside for objects: little passes
_CONNECT = 5.0
_PART = 1024  # rows of a part; parts are dealt out as workers ask for them


@contextmanager
def connected(cluster: str, processes: int) -> Iterator[Any]:
    """Join a cluster, or start one of so many processors here; yield the ``ray`` module, and leave at the end.

    Raises:
        UsageError: it is no address.
        RemoteError: the cluster cannot be reached.
        MissingExtraError: Ray is not installed.
    """
    if cluster not in (HERE, _OURS):
        _check_reachable(cluster)
    quieten_ray()
    try:
        import ray
        import ray.train.torch
        import ray.util.queue
        from ray._private import services
    except ImportError as error:
        raise MissingExtraError("--cluster", install='"llmasos[ray]"') from error
    options: dict[str, Any] = {"address": cluster, "log_to_driver": False, "logging_level": "CRITICAL"}
    if cluster == HERE:
        options |= {"num_cpus": max(processes, hardware.physical_cores()), "include_dashboard": False,
                    "object_store_memory": _MEMORY}  # fmt: skip
    try:
        if cluster == _OURS:  # RAY_ADDRESS, or what `ray start` has noted: a cluster that is gone may stand there
            _check_reachable(services.canonicalize_bootstrap_address_or_die(cluster))
        _join(ray, options)
    except LLMasOSError:
        raise
    except Exception as error:
        raise _unreachable(cluster, error) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _join(ray: Any, options: dict[str, Any]) -> None:
    """Join a cluster; one from outside starts a server for us first, and gives up before a busy machine has."""
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    for left in (2, 1, 0):
        try:
            ray.init(**options)
            return
        except ConnectionAbortedError:
            if not left:
                raise


def _check_reachable(cluster: str) -> None:
    """Ask the port itself first: Ray takes seconds to import, and tries for a minute."""
    found = re.fullmatch(r"(?:ray://)?([^:/]+|\[[^\]/]+\]):(\d+)", cluster)
    if found is None or int(found[2]) > 65535:
        raise UsageError(f"--cluster {cluster!r}", hint="ray://host:port, host:port, auto or local")
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=_CONNECT).close()
    except OSError as error:
        raise _unreachable(cluster, error) from error


def _unreachable(cluster: str, error: Exception) -> RemoteError:
    why = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
    start = "start one with `ray start --head`, or take --cluster local"
    hint = (
        start if cluster == _OURS else f"is it running, and is the port that of Ray (ray:// 10001, else 6379)? {start}"
    )
    return RemoteError(f"the Ray cluster {cluster} cannot be reached: {why[:200]}", hint=hint)


def machines(ray: Any) -> list[dict[str, float]]:
    """Return what each machine of the cluster has, by Ray's names: CPU, GPU."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def dealt(make: Callable[[], Callable[[int, int], str]], rows: int, cluster: str) -> Iterator[str]:
    """Compute parts of so many rows on a cluster, with Ray Data; yield the results in order, each once.

    Args:
        make: called once in each worker; what it returns computes the rows from ``start`` to before ``stop``.
        rows: how many there are.
        cluster: as for ``connected``. Each machine has one worker.

    Raises:
        LLMasOSError: what a worker raised.
        RemoteError: the work was lost with its machines.
        UsageError: a cluster from outside, which Ray Data (2.60) does not work with.
    """
    if cluster.startswith("ray://"):
        raise UsageError(
            f"--cluster {cluster}: Ray Data does not run from outside a cluster",
            hint="run the command on a machine of the cluster, with --cluster auto",
        )

    class Worker:
        def __init__(self) -> None:
            self.compute = make()

        def __call__(self, part: dict[str, Any]) -> dict[str, list[str]]:
            (start,), (stop,) = part["start"], part["stop"]
            return {"result": [self.compute(int(start), int(stop))]}

    with connected(cluster, 1) as ray:
        import pyarrow
        import ray.data as data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        bounds = [(start, min(start + _PART, rows)) for start in range(0, rows, _PART)]
        parts = [pyarrow.table({"start": [start], "stop": [stop]}) for start, stop in bounds]
        found = machines(ray)
        cores = max(1, min(int(machine.get("CPU", 0)) for machine in found))
        answers = data.from_arrow(parts).map_batches(
            Worker, batch_size=1, compute=data.ActorPoolStrategy(size=min(len(found), len(parts))), num_cpus=cores,
            runtime_env={"env_vars": for_other_machines()},
        )  # fmt: skip
        results = iter(answers.iter_rows())
        while True:
            try:
                with redirect_stdout(sys.stderr):  # Ray prints what machines tell
                    row = next(results, None)
            except Exception as error:
                raise said(error) from error
            if row is None:
                return
            yield row["result"]


def said(error: Exception) -> LLMasOSError:
    """Return the error of ours that a worker raised, or a word for what became of it."""
    cause: BaseException | None = error
    while cause is not None:
        for one in (getattr(cause, "cause", None), cause):  # Ray's own comes with a traceback
            if isinstance(one, LLMasOSError):
                return one
        cause = cause.__cause__
    why = " ".join(str(error).split())
    return RemoteError(f"the Ray cluster did not finish the work: {why[:300]}", hint=SHARED)
