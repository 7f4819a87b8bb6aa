"""Prove that a training goes on to the same bits: it is repeated whole, and repeated with kills in its midst."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core import bundle
from ..core.errors import ParityError, TrainingError, UsageError
from ..core.events import Event, Note, Phase, Progress
from .records import options_of, recorded

CHECKPOINTS = 8
"""Checkpoints of a repeated run, if its record does not say."""


@dataclass(frozen=True)
class Verified:
    """What came of a proof. Hashes are SHA-256 of all weights, and of all losses and metrics.

    ``killed_at``: the steps after which the process was killed; ``as_saved``: whether the folder holds the same
    weights, None where the proof was cut short by ``max_steps``.
    """

    steps: int
    processes: int
    killed_at: list[int]
    weights: str
    weights_after_kills: str
    metrics: str
    metrics_after_kills: str
    as_saved: bool | None

    @property
    def holds(self) -> bool:
        """Whether both runs ended alike."""
        return self.weights == self.weights_after_kills and self.metrics == self.metrics_after_kills

    def as_dict(self) -> dict[str, Any]:
        """Return the proof as JSON types."""
        return {**asdict(self), "holds": self.holds}


def verify_resume(
    folder: str | Path, *, kills: int = 3, seed: int = 0, max_steps: int | None = None
) -> Generator[Event, None, Verified]:
    """Repeat the training of a folder, once whole and once with kills.

    Args:
        folder: what ``finetune`` has written from files.
        kills: how often the second run is killed with SIGKILL, at random steps.
        seed: what the steps are drawn from.
        max_steps: train only so many steps.

    Raises:
        UsageError: the training cannot be repeated.
        TrainingError: a repeated run failed.
        ParityError: the runs differ: how, and what is known to cause it.
    """
    folder = Path(folder).expanduser()
    record = recorded(folder)
    steps = int(record["result"].get("steps") or 0)
    if not steps:
        raise UsageError(f"the training in {folder} is not finished", hint="the same command goes on with it")
    steps = min(steps, max_steps or steps)
    if kills < 1 or steps < 2:
        raise UsageError(f"kills={kills}, steps={steps}", hint="at least one kill, and two steps")
    at = sorted(np.random.default_rng(seed).choice(np.arange(1, steps), min(kills, steps - 1), replace=False).tolist())
    options = options_of(record) | {"threads": record["threads"], "report_to": "none", "checkpoint_minutes": 0.0}
    options["checkpoint_steps"] = options.get("checkpoint_steps") or max(1, steps // CHECKPOINTS)
    if max_steps:
        options["max_steps"] = steps
    with tempfile.TemporaryDirectory() as scratch:
        job = {"asked": record["asked"], "tag": record["task"]["tag"], "task": record["task"], "options": options}
        world = int(record.get("world", 1))
        yield Phase("the whole run", steps)
        yield from _repeated(Path(scratch) / "whole", job, world, ())
        yield Phase("the run with kills", steps)
        yield from _repeated(Path(scratch) / "killed", job, world, at)
        whole, killed = (_hashes(Path(scratch) / name) for name in ("whole", "killed"))
        saved = None if max_steps or not bundle.is_bundle(folder) else _hashes(folder)[0] == whole[0]
        found = Verified(steps, world, at, whole[0], killed[0], whole[1], killed[1], saved)
        if not found.holds:
            raise ParityError(_why(found, record, Path(scratch)), hint="report it, with the run's run.json")
    if saved is False:
        yield Note(
            "both repeated runs are alike, but the folder holds other weights: it was trained on another machine, with "
            "other versions or another number of threads, or was changed since", "warning",
        )  # fmt: skip
    return found


def _repeated(output: Path, job: dict[str, Any], world: int, kills: tuple[int, ...] | list[int]) -> Iterator[Event]:
    """Train into ``output``; kill a process at each of some steps, and start again."""
    path = output.with_suffix(".json")
    path.write_text(json.dumps({**job, "output": str(output)}))
    words = [sys.executable, "-m"]
    words += [] if world == 1 else ["torch.distributed.run", "--standalone", f"--nproc-per-node={world}", "-m"]
    words += ["llmasos.cli._rerun", str(path)]
    for kill in (*kills, None):
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True)
            try:
                yield from _followed(process, kill)
            finally:
                process.kill()
                process.wait()
            if kill is None and process.returncode:
                errors.seek(0)
                raise TrainingError(f"a repeated run failed:\n{errors.read()[-2000:]}", hint="see its message above")


def _followed(process: subprocess.Popen[str], kill: int | None) -> Iterator[Event]:
    """Follow a run, and kill one of its processes after a step."""
    pids: list[int] = []
    assert process.stdout is not None
    for line in process.stdout:
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if "pid" in told:
            pids.append(told["pid"])
        elif kill is not None and told["step"] >= kill:
            os.kill(pids[kill % len(pids)], signal.SIGKILL)
            break
        else:
            yield Progress(told["step"])
    process.wait()


def _hashes(folder: Path) -> tuple[str, str]:
    """Return the hash of the weights and that of the losses and metrics."""
    weights, metrics = hashlib.sha256(), hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        weights.update(bundle.digest(file).encode())
    for event in _events(folder):
        metrics.update(json.dumps(event, sort_keys=True).encode())
    return weights.hexdigest(), metrics.hexdigest()


def _events(folder: Path) -> list[dict[str, Any]]:
    """Return a run's events without what depends on the clock."""
    lines = (folder / bundle.RUN / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in ("rows_per_second", "seconds_left")}
            for line in lines]  # fmt: skip


def _why(found: Verified, record: dict[str, Any], scratch: Path) -> str:
    """Say where two runs part, and what is known to make runs part."""
    pairs = zip(_events(scratch / "whole"), _events(scratch / "killed"), strict=False)
    first = next((a["step"] for a, b in pairs if a != b), None)
    where = "in their weights alone" if first is None else f"from step {first}"
    device = record["config"].get("device", "auto")
    cause = "" if device == "cpu" else "; on a GPU some sums run in no fixed order"
    return f"a run that was killed after steps {found.killed_at} differs from the whole one {where}{cause}"
