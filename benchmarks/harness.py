"""Run candidates alternately, each in a fresh process, and keep every number.

A benchmark module has two doors. The parent lists its candidates and measures them A B C A B C ..., so
that a change in the machine's mood meets all of them alike. The child (``--child NAME``) does one piece
of work, times it itself and prints one JSON line. The parent does nothing but wait while a child works.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from . import machine
from .records import Result, Run

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Candidate:
    """A command to measure; ``{seed}`` in an argument becomes the seed of the round."""

    name: str
    argv: tuple[str, ...]


def parser(about: str | None, *, seeds: int = 3) -> argparse.ArgumentParser:
    """Return the options that every benchmark takes; the hidden ones are for its children."""
    out = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    out.add_argument("--rows", type=int, help="use only so many rows (a trial run)")
    told = f"rounds, with seeds 0, 1, ... (default {seeds})"
    out.add_argument("--seeds", "--rounds", type=int, default=seeds, metavar="N", help=told)
    out.add_argument(
        "--only", action="append", default=[], metavar="CANDIDATE", help="measure only this one; repeatable"
    )
    for hidden in ("--child", "--work"):
        out.add_argument(hidden, help=argparse.SUPPRESS)
    out.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    out.set_defaults(usual_seeds=seeds)
    return out


def child(module: str, name: str, work: Path, *extra: str) -> Candidate:
    """Return the candidate that runs ``python -m benchmarks.MODULE --child NAME``."""
    command = (sys.executable, "-m", f"benchmarks.{module}", "--child", name, "--seed", "{seed}", "--work", str(work))
    return Candidate(name, command + extra)


def chosen(names: Sequence[str], only: Sequence[str]) -> list[str]:
    """Return the candidates that ``--only`` leaves, in their own order."""
    unknown = [name for name in only if name not in names]
    if unknown:
        raise SystemExit(f"no candidate {', '.join(unknown)}; there are {', '.join(names)}")
    return [name for name in names if not only or name in only]


@contextmanager
def workspace() -> Iterator[Path]:
    """Give a temporary folder on the disk that holds temporary files; it is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="llmasos-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def measure(candidates: Sequence[Candidate], seeds: int, work: Path, *, memory: bool = False) -> list[Run]:
    """Run every candidate once per seed, alternating; one that lacks a package is not tried again."""
    runs: list[Run] = []
    absent: set[str] = set()
    for seed in range(seeds):
        for candidate in candidates:
            if candidate.name in absent:
                continue
            run = run_one(candidate, seed, work, memory=memory)
            runs.append(run)
            say(f"round {seed + 1}/{seeds}  {candidate.name}: {_brief(run)}")
            if run.missing:
                absent.add(candidate.name)
    return runs


def run_one(candidate: Candidate, seed: int, work: Path, *, memory: bool = False) -> Run:
    """Run one candidate in a fresh process with caches of its own, so that no run profits from another.

    Adds to what the child printed: ``process_seconds`` (start to exit), ``load`` (1-minute load average
    before and after) and, with ``memory``, ``sampled_mb`` (peak resident memory of its process tree).
    """
    home = Path(tempfile.mkdtemp(prefix="child-", dir=work))
    argv = [part.replace("{seed}", str(seed)) for part in candidate.argv]
    load, start = psutil.getloadavg()[0], time.perf_counter()
    with (home / "stderr.log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=ROOT, env=_environment(home), stdout=subprocess.PIPE, stderr=log)
        with _sampled(process.pid) if memory else _nothing() as sampled:
            out = process.communicate()[0].decode(errors="replace")
    measured = {"process_seconds": time.perf_counter() - start, "load": [load, psutil.getloadavg()[0]], **sampled}
    said = _last_json(out)
    log_tail = (home / "stderr.log").read_text(errors="replace").strip()[-2000:]
    shutil.rmtree(home, ignore_errors=True)
    if process.returncode:
        say(log_tail)
        return Run(candidate.name, seed, measured, error=f"exit code {process.returncode}: {_last_line(log_tail)}")
    if "missing" in said:
        return Run(candidate.name, seed, measured, missing=said["missing"])
    return Run(candidate.name, seed, {**said, **measured})


def finish(result: Result, options: argparse.Namespace, *, partial: bool = False) -> None:
    """Print the table and write the raw JSON; trial runs go to ``NAME.partial.json``.

    Raises:
        SystemExit: a candidate failed; its row says so.
    """
    from . import tables

    partial = partial or bool(options.rows or options.only or options.seeds < options.usual_seeds)
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *map(_short, sys.argv[1:])]),
        "seeds": list(range(options.seeds)),
        "rows": options.rows,
        "load": [run.values["load"] for run in (result.runs[0], result.runs[-1]) if "load" in run.values],
        "machine": machine.describe(),
        "versions": machine.versions(),
    }
    content = {**asdict(result), "about": {**about, **result.about}}
    path = RESULTS / f"{result.name}{'.partial' if partial else ''}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(tables.text(Result.from_dict(content)))
    say(f"raw numbers: {path.relative_to(ROOT)}")
    if any(run.error for run in result.runs):
        raise SystemExit(1)


def _short(word: str) -> str:
    """Return a word of the command line, without where a folder is on this machine."""
    return Path(word).name if Path(word).is_absolute() else word


def say(text: str) -> None:
    """Tell how far things are, on standard error."""
    print(text, file=sys.stderr, flush=True)


# -- inner --------------------------------------------------------------------------------------------


def _environment(home: Path) -> dict[str, str]:
    caches = {"HF_DATASETS_CACHE": home / "datasets", "LLMASOS_HOME": home / "llmasos", "TMPDIR": home}
    return {**os.environ, "HF_HUB_OFFLINE": "1", **{name: str(path) for name, path in caches.items()}}


def _last_json(out: str) -> dict[str, Any]:
    """Return the last JSON object that was printed on a line of its own; libraries print other lines too."""
    for line in reversed(out.splitlines()):
        if line.startswith("{"):
            try:
                return dict(json.loads(line))
            except ValueError:
                continue
    return {}


def _last_line(log: str) -> str:
    """Return the last line, without the paths of this checkout: results are published."""
    return log.rpartition("\n")[2].replace(str(ROOT), ".")


def _brief(run: Run) -> str:
    if run.missing or run.error:
        return f"no numbers: {run.missing}" if run.missing else f"failed: {run.error}"
    numbers = {k: v for k, v in run.values.items() if isinstance(v, int | float)}
    return "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())


@contextmanager
def _nothing() -> Iterator[dict[str, float]]:
    yield {}


@contextmanager
def _sampled(pid: int, every: float = 0.05) -> Iterator[dict[str, float]]:
    """Watch a process tree's resident memory while the block runs, in megabytes (10^6 bytes).

    ``private_mb`` leaves out pages that belong to files: those that are memory-mapped count as resident,
    but the system takes them back when it needs the room.
    """
    peak = {"sampled_mb": 0.0, "private_mb": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(every):
            for key, number in _resident(pid).items():
                peak[key] = max(peak[key], number)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _resident(pid: int) -> dict[str, float]:
    total = private = 0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            memory = one.memory_info()
            total, private = total + memory.rss, private + memory.rss - getattr(memory, "shared", 0)
    except psutil.Error:  # the process ended between two looks
        pass
    return {"sampled_mb": total / 1e6, "private_mb": private / 1e6}
