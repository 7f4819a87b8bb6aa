"""A fine-tuning by the command that people give, and what its own records say of it.

``python -m benchmarks.command FOLDER WORDS...`` runs ``llmasos WORDS`` in this process with stopwatches on its steps,
on what its processes tell each other, and on its checkpoints; each process writes ``FOLDER/RANK.json``.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import data

COLLECTIVES = ("all_reduce", "all_gather")


def finetune(work: Path, name: str, words: Sequence[str], *, processes: int = 1, watch: bool = False) -> dict[str, Any]:
    """Fine-tune MiniLM on ``work/train.jsonl`` in processes of its own.

    Returns:
        ``seconds`` of the training loop by the run's own record, ``outside_seconds`` of all else, ``losses`` of every
        step, ``precision``; with ``watch`` also ``seen``: what the stopwatches of each process saw.
    """
    output, seen = work / name, work / f"{name}.seen"
    ours = ["finetune", data.MODEL, "--data", str(work / "train.jsonl"), "--eval-split", "0", "--output", str(output)]
    ours += [*words, "--overwrite"]
    command = [sys.executable, "-m", "llmasos", *ours, "--nproc", str(processes)]
    if watch:
        seen.mkdir(exist_ok=True)
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        command = [sys.executable, "-m", *(launcher if processes > 1 else ()), "benchmarks.command", str(seen), *ours]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    record = json.loads((output / "run" / "run.json").read_text())
    lines = map(json.loads, (output / "run" / "metrics.jsonl").read_text().splitlines())
    seconds = record["result"]["training_seconds"]
    out = {"seconds": seconds, "outside_seconds": wall - seconds, "precision": record["config"]["precision"],
           "losses": [line["loss"] for line in lines if line["event"] == "step"]}  # fmt: skip
    return out | ({"seen": [json.loads((seen / f"{rank}.json").read_text()) for rank in range(processes)]}
                  if watch else {})  # fmt: skip


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest relative difference between two lists of losses; infinite where one is longer."""
    if len(ours) != len(theirs):
        return float("inf")
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, theirs, strict=True))


class Stopwatches:
    """What one process spends on its steps, on telling the others, and on checkpoints, in seconds.

    ``steps``: of each step its ``compute`` (forward, backward, norm) and its ``update``, both without the
    ``collectives``, which are listed in their order, and its ``whole``, from the end of the step before.
    ``checkpoints``: how long each ``held`` the loop, of which ``copy`` is the copy of the state. ``written``: how long
    the writing of each took beside the loop, how long it used a ``processor``, and its ``bytes``.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.checkpoints: list[dict[str, float]] = []
        self.written: list[dict[str, float]] = []
        self._collectives: list[float] = []
        self._compute = self._copy = 0.0
        self._ended = time.perf_counter()

    def install(self) -> None:
        """Hang the stopwatches onto what they watch."""
        import torch.distributed as dist

        from llmasos.backends import fsdp
        from llmasos.core import atomic
        from llmasos.training.checkpoint import Checkpoints
        from llmasos.training.optimizer import Parameters
        from llmasos.training.stepper import Stepper

        for name in COLLECTIVES:
            _timed(dist, name, self._told)
        for own in (fsdp.GlooAllGather, fsdp.GlooReduceScatter):
            _timed(own, "__call__", self._told)
        _timed(Stepper, "compute", self._computed, lambda: sum(self._collectives))
        _timed(Stepper, "update", self._updated)
        _timed(Parameters, "state", self._copied)
        _timed(Checkpoints, "save", self._saved)
        _timed(atomic, "write_folder", self._wrote)

    def as_dict(self) -> dict[str, Any]:
        """Return all that was seen, as JSON types."""
        return {"steps": self.steps, "checkpoints": self.checkpoints, "written": self.written}

    def _told(self, seconds: float, _told: float, _args: Any) -> None:
        self._collectives.append(seconds)

    def _computed(self, seconds: float, told: float, _args: Any) -> None:
        self._compute = seconds - told

    def _updated(self, seconds: float, _told: float, _args: Any) -> None:
        now = time.perf_counter()
        step = {"compute": self._compute, "update": seconds, "collectives": self._collectives.copy()}
        self.steps.append({**step, "whole": now - self._ended})
        self._collectives.clear()
        self._ended = now

    def _copied(self, seconds: float, _told: float, _args: Any) -> None:
        self._copy = seconds

    def _saved(self, seconds: float, _told: float, _args: Any) -> None:
        self.checkpoints.append({"copy": self._copy, "held": self._copy + seconds})

    def _wrote(self, seconds: float, _told: float, args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            size = sum(file.stat().st_size for file in Path(args[0]).iterdir())
            self.written.append({"seconds": seconds, "processor": time.thread_time(), "bytes": size})


def _timed(owner: Any, name: str, then: Callable[..., None], counter: Callable[[], float] = lambda: 0.0) -> None:
    """Let ``then(seconds, by how much the counter rose, arguments)`` hear of each call."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def timed(*args: Any, **options: Any) -> Any:
        start, before = time.perf_counter(), counter()
        result = original(*args, **options)
        then(time.perf_counter() - start, counter() - before, args)
        return result

    setattr(owner, name, timed)


def main(folder: Path, words: Sequence[str]) -> int:
    """Run a command with stopwatches."""
    from llmasos.cli import main as llmasos

    watches = Stopwatches()
    watches.install()
    code = llmasos(list(words))
    (folder / f"{os.environ.get('RANK', '0')}.json").write_text(json.dumps(watches.as_dict()))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
