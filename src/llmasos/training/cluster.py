"""Train on many machines: Ray starts the processes of a training, and starts them again when one was lost.

Each process runs the same training as one of ``launch.py`` does, and finds its place in the environment that Ray Train
makes. All that a training needs to go on is in its output folder, so neither checkpoints nor retries of Ray are used:
those would repeat a wrong option as often as a lost machine, and they could not tell a training that shall begin anew
(``overwrite``) from one that shall go on.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..cluster import HERE, SHARED, connected, machines, said
from ..core import atomic, bundle
from ..core.environment import for_other_machines
from ..core.errors import LLMasOSError, TrainingError, UsageError
from ..core.events import Event, Note
from ..core.storage import Storage, is_url
from ..data import dealing
from .folder import RECORD
from .storage import Stored

T_co = TypeVar("T_co", covariant=True)

RETRIES = 3
"""Times that a training is started again after a process was lost."""
_PATIENCE = 30.0  # seconds that a lost machine has to come back before a training goes on without it
_SILENCE = 45.0  # seconds without an event after which it is said that the cluster is busy
_AHEAD = 8  # results of a part, some thousand rows each, that may wait to be fetched
_LOOK = 0.2  # seconds between two looks at whether the training shall stop
_JOIN = 86400  # seconds: the main process tokenises before it answers the others


class Work(Protocol[T_co]):
    """One process of a training; what the main one returns is the result."""

    def __call__(self, *, resume: bool | None, listener: Callable[[Event], None]) -> T_co:
        """Train; ``listener`` is called with each event."""


def train(
    work: Work[T_co],
    cluster: str,
    processes: int,
    *,
    output: str | Path,
    resume: bool | None = None,
    threads: int | None = None,
) -> Generator[Event, None, T_co]:
    """Run a training in so many processes of a Ray cluster.

    Args:
        work: what each process does; it and what it refers to are sent to the machines.
        cluster: ``ray://host:port``, ``host:port``, ``auto`` (the one that this machine belongs to) or ``local``
            (one is started here, and ended).
        processes: how many; each takes ``threads`` processors, and a GPU where there are as many.
        output: the folder that the training ends in, or its URL. Every machine must see it, and the data, under the
            same path.
        resume: as for ``LLM.finetune``, the first time; afterwards what was begun is gone on with.
        threads: processors of each process; as many as all can have if not given.

    Yields:
        The events of the main process, and notes.

    Returns:
        What ``work`` returned in the main process.

    Raises:
        MissingExtraError: Ray is not installed.
        RemoteError: the cluster cannot be reached.
        UsageError: it has not that many processors.
        TrainingError: processes were lost again and again.
        LLMasOSError: what a process raised.
    """
    with redirect_stdout(sys.stderr), connected(cluster, processes) as ray:  # Ray prints what machines tell
        failures: list[str] = []
        count, is_waiting = processes, False
        while True:
            place = str(output) if is_url(output) else str(Path(output).absolute())
            attempt = _Attempt(ray, work, place, resume, again=bool(failures))
            yield from attempt.run(count, share(ray, count, threads), says_so=not is_waiting)
            if attempt.error is None:
                return attempt.result  # type: ignore[no-any-return]
            is_waiting = _is_without_room(attempt.error)
            if is_waiting and not attempt.interrupted:  # that a machine is lost may be known later than its processes
                if failures and (left := _left(ray, processes, threads)) < count:
                    count = left
                    yield Note(f"the cluster has room for {count} processes of {processes} now", "warning")
                continue
            _refuse(attempt.error, shared=cluster != HERE)
            if attempt.interrupted:
                raise KeyboardInterrupt
            failures.append(_worded(attempt.error))
            if len(failures) > RETRIES:
                raise TrainingError(
                    f"processes of the training were lost {len(failures)} times, the last time: {failures[-1]}",
                    hint="the same command goes on from the last checkpoint; Ray's own logs tell more, and a loss "
                    "without a reason often means that memory ran out",
                ) from attempt.error
            yield Note(f"a process of the training was lost ({failures[-1]}): it goes on from its last checkpoint, "
                       f"attempt {len(failures) + 1} of {RETRIES + 1}", "warning")  # fmt: skip
            count = _left(ray, processes, threads)
            if count < processes:
                yield Note(f"the cluster has room for {count} processes of {processes} now", "warning")


class _Flag:
    """An actor that says whether the training shall stop: signals do not arrive in its processes."""

    def __init__(self) -> None:
        self._is_up = False

    def put_up(self) -> None:
        self._is_up = True

    def is_up(self) -> bool:
        return self._is_up


class _Attempt:
    """One start of all processes; ``result`` is what the main one returned, ``error`` what ended them."""

    def __init__(self, ray: Any, work: Work[Any], output: str, resume: bool | None, *, again: bool) -> None:
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self._flag = ray.remote(_Flag).options(num_cpus=0, scheduling_strategy=here).remote()
        self._output = output
        self._config = {"work": work, "events": self._events, "flag": self._flag, "output": output,
                        "resume": resume, "again": again, "argv": list(sys.argv)}  # fmt: skip
        self.interrupted = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, processes: int, share: dict[str, float], *, says_so: bool) -> Iterator[Event]:
        """Start the processes, and yield the events of the main one until all have ended.

        ``says_so``: whether to tell that the cluster does not begin.

        The first Ctrl-C lets the training stop after a step and keep its best model, the second ends it at once.
        """
        from ray.util.queue import Empty

        # not in this thread: Ray would take Ctrl-C for itself there, and end with exit code 0
        thread = threading.Thread(target=self._fit, args=(processes, share), daemon=True)
        thread.start()
        waits_from = time.monotonic() if says_so else None
        while True:
            ended = not thread.is_alive()
            try:
                yield self._events.get(timeout=0.5)
                waits_from = None
            except KeyboardInterrupt:
                if self.interrupted:
                    raise
                self.interrupted = True
                self._flag.put_up.remote()
                yield Note("Ctrl-C: the training keeps its best model after the next step, and ends; once more, and it "
                           "ends at once and can be gone on with", "warning")  # fmt: skip
            except Empty:
                if ended:
                    break
                if waits_from is not None and time.monotonic() - waits_from > _SILENCE:
                    waits_from = None
                    yield Note("the cluster has not begun yet: others may be at work there", "warning")
        self._events.shutdown()

    def _fit(self, processes: int, share: dict[str, float]) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        gpu = "GPU" in share
        parent, _, name = self._output.rstrip("/").rpartition("/")
        place = f"{parent}/.{name}.ray"
        trainer = TorchTrainer(
            _process,
            train_loop_config=self._config,
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo", timeout_s=_JOIN),
            scaling_config=ScalingConfig(num_workers=processes, use_gpu=gpu, resources_per_worker=share),
            run_config=RunConfig(
                name="run", storage_path=place,
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0),
                worker_runtime_env={"env_vars": for_other_machines()},
            ),
        )  # fmt: skip
        try:
            self.result = trainer.fit().return_value
        except BaseException as error:
            self.error = error
        finally:
            Storage(place).remove()


def _process(config: dict[str, Any]) -> Any:
    """Run in each process of a training."""
    import ray
    from ray.train import get_context

    sys.argv = config["argv"]  # the run's record names the command
    resume = config["resume"]
    told: list[Any] = []
    stop = _Stop(config["flag"])

    def tell(event: Event) -> None:
        told[:] = [config["events"].actor.put_nowait.remote(event)]
        stop.look()

    is_main = get_context().get_world_rank() == 0
    if config["again"] and is_main:
        resume = True if _has_begun(config["output"]) else None
    try:
        with dealing.by(_dealer(ray)) if is_main else nullcontext():
            result = config["work"](resume=resume, listener=tell if is_main else lambda _: None)
    except LLMasOSError as error:
        if hasattr(error, "kept"):
            error.kept = ()  # a model, which is not sent
        raise
    ray.get(told)  # in their order: the last one is there when all are
    return result if is_main else None


class _Stop:
    """Looks in the main process, now and then, whether the training shall stop; the others learn it at the same step.

    What ``Asked`` is told reaches all processes through ``Backend.any``.
    """

    def __init__(self, flag: Any) -> None:
        self._flag, self._asked, self._at, self._done = flag, None, 0.0, False

    def look(self) -> None:
        import ray

        from .trainer import ask_to_stop

        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            if ray.get(self._asked):
                self._done = ask_to_stop()
            self._asked = None
        if not self._done and self._asked is None and time.monotonic() > self._at + _LOOK:
            self._asked, self._at = self._flag.is_up.remote(), time.monotonic()


def _dealer(ray: Any) -> dealing.Dealer:
    """Return what deals the reading and the tokenising of the main process out to the cluster.

    Ray tasks that ask for no processor, and not Ray Data: the processes of the training have all processors while
    they wait for the tokens, and Ray Data starts only what still finds some. A lost task is done again by Ray.
    """
    most = max(1, int(sum(machine.get("CPU", 0) for machine in machines(ray))))

    def deal(work: Any, parts: Iterable[Any]) -> Iterator[Any]:
        kept = ray.put(work)
        task = ray.remote(_deal).options(
            num_cpus=0, num_returns="streaming", max_retries=RETRIES, scheduling_strategy="SPREAD",
            _generator_backpressure_num_objects=_AHEAD,
            runtime_env={"env_vars": for_other_machines() | {"TOKENIZERS_PARALLELISM": "false"}},
        )  # fmt: skip
        running: deque[Any] = deque()
        try:
            for part in parts:
                running.append(task.remote([kept], part))
                if len(running) >= most:
                    yield from map(ray.get, running.popleft())
            while running:
                yield from map(ray.get, running.popleft())
        except ray.exceptions.RayError as error:
            raise said(error) from error

    return deal


def _deal(kept: list[Any], part: Any) -> Iterator[Any]:
    """Do a part of the work in a process of the cluster, which unpacks the work (a tokenizer) once."""
    import ray

    name = kept[0].hex()
    if name not in _AT_HAND:
        _AT_HAND.clear()
        _AT_HAND[name] = ray.get(kept[0])
    yield from _AT_HAND[name](part)


_AT_HAND: dict[str, Any] = {}


def _has_begun(output: str) -> bool:
    """Say whether there is an unfinished run to go on with, after the lost processes have let go of it."""
    stored = Stored(output) if is_url(output) else None
    folder = stored.local if stored else Path(output)
    unfinished = folder.with_name(folder.name + ".unfinished")
    wait_for(unfinished)
    return (unfinished / bundle.RUN / RECORD).exists() or (stored is not None and stored.step() > 0)


def wait_for(folder: Path) -> None:
    """Wait until the lost processes have let go of the folder, or seem not to."""
    until = time.monotonic() + 60.0
    while folder.exists() and atomic.is_held(folder) and time.monotonic() < until:
        time.sleep(0.2)


def _room(found: list[dict[str, float]], cores: int) -> int:
    """Return how many processes of so many processors there is room for."""
    return sum(int(machine.get("CPU", 0) // cores) for machine in found)


def share(ray: Any, processes: int, threads: int | None) -> dict[str, float]:
    """Return what each of so many processes takes of its machine.

    Raises:
        UsageError: there is no room for so many.
    """
    found = machines(ray)
    most = int(max(machine.get("CPU", 0) for machine in found))
    fitting = [cores for cores in (threads,) if cores] or [*range(most, 0, -1)]
    cores = next((cores for cores in fitting if _room(found, cores) >= processes), None)
    if cores is None:
        least = fitting[-1] if fitting else 1
        raise UsageError(
            f"the cluster has room for {_room(found, least)} processes of {least} processors, not for {processes}",
            hint="a smaller --nproc, --parallel or --threads, or more machines (`ray start --address=...`)",
        )
    gpus = sum(machine.get("GPU", 0) for machine in found)
    return {"CPU": float(cores)} | ({"GPU": 1.0} if gpus >= processes else {})


def _left(ray: Any, processes: int, threads: int | None) -> int:
    """Return how many processes there is room for, after some time for a lost machine to come back."""
    until = time.monotonic() + _PATIENCE
    while True:
        room = _room(machines(ray), threads or 1)
        if room >= processes or time.monotonic() > until:
            return max(1, min(room, processes))
        time.sleep(0.5)


def _is_without_room(error: BaseException) -> bool:
    """Say whether the processes could not begin, since others had all processors, or a machine was just lost."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

    return isinstance(
        getattr(error, "controller_failure", None), WorkerGroupStartupFailedError | WorkerGroupStartupTimeoutError
    )


def _refuse(error: BaseException, *, shared: bool) -> None:
    """Raise what a process had to say itself, or what no further attempt can mend."""
    failures = getattr(error, "worker_failures", None)
    if failures is None:
        why = str(getattr(error, "controller_failure", error)).strip().splitlines() or [type(error).__name__]
        raise TrainingError(f"Ray could not run the training: {why[-1].strip()[:300]}", hint=SHARED) from error
    for _, failure in sorted(failures.items()):
        own = getattr(failure, "_base_exc", failure)
        if isinstance(own, LLMasOSError):
            if shared:
                own.hint = f"{own.hint}. {SHARED}" if own.hint else SHARED
            raise own


def _worded(error: BaseException) -> str:
    """Say in a line which processes were lost, or what one of them met."""
    failures = dict(sorted(getattr(error, "worker_failures", {}).items()))
    dead = [str(rank) for rank, failure in failures.items() if hasattr(failure, "health_check_failure")]
    if dead:
        return f"process {', '.join(dead)} is dead"
    met = {rank: getattr(failure, "_base_exc", failure) for rank, failure in failures.items()}
    words = {rank: f"{type(one).__name__}: {' '.join(str(one).split())[:160]}" for rank, one in met.items()}
    return "; ".join(f"process {rank}: {text}" for rank, text in words.items())
