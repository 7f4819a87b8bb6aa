"""An int8 MiniLM without torch: installed size, and seconds from the start of a process to the first label.

The artifact's own instructions are followed in a fresh virtual environment (``requirements.txt``, with the wheel of
llmasos-edge built from this checkout), and once more as pip resolves everything. Sizes are of all files that were
installed, after the first run has compiled what it imported. Beside it, the same text through transformers' pipeline on
the model itself, and through ``llmasos predict``: whole processes, each with a warm disk cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from . import child, data, harness
from .harness import Candidate
from .records import Column, Result, goal, middle

TEXT = "a gripping film with a heart"
PIPELINE = (
    "import sys; from transformers import pipeline\n"
    "print(pipeline('text-classification', sys.argv[1], device='cpu')(sys.argv[2]))"
)


def main() -> None:
    """Export, install, and time the processes."""
    parser = harness.parser(__doc__, seeds=7)
    data.add_options(parser)
    parser.add_argument("--model", type=Path, help="a classifier to use instead of training one")
    parser.add_argument("--artifact", type=Path, help="its export to edge, instead of exporting it")
    options = parser.parse_args()
    if options.child:
        child.report(exported(Path(options.work)))
        return
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # what is imported is compiled once, as for its users
    with harness.workspace() as work:
        data.prepare(options.data, work, options.rows)
        artifact = made(work, options)
        places = {"edge": installed(work, artifact), "edge_resolved": installed(work, artifact, whole=True)}
        commands = {name: (str(place / "bin" / "llmasos-edge"), "predict", str(artifact), TEXT)
                    for name, place in places.items()}  # fmt: skip
        llmasos = (sys.executable, "-m", "llmasos", "predict")
        commands |= {
            "llmasos_artifact": (*llmasos, str(artifact), TEXT),
            "llmasos": (*llmasos, str(work / "model"), TEXT),
            "transformers": (sys.executable, "-c", PIPELINE, str(work / "model"), TEXT),
        }
        names = harness.chosen(list(commands), options.only)
        candidates = [Candidate(name, commands[name]) for name in names]
        harness.measure(candidates, 1, work)
        runs = harness.measure(candidates, options.seeds, work)
        sizes = {name: size_of(place) for name, place in places.items()}
        sizes["transformers"] = size_with_dependencies(["torch", "transformers"])
    more = {name: {"installed_mb": size} for name, size in sizes.items()}
    runs = [replace(run, values={**run.values, **more.get(run.candidate, {})}) for run in runs]
    result = Result(
        name="edge",
        title="The first label of an int8 MiniLM, whole processes",
        columns=[Column("process_seconds", "seconds"), Column("installed_mb", "installed, MB", 1)],
        candidates=names,
        runs=runs,
        baseline="transformers",
        goals=[
            goal("installed below 150 MB", middle(runs, "edge", "installed_mb"), 150, least=False, shown="{:.1f} MB"),
            goal("first label within 1 s", middle(runs, "edge", "process_seconds"), 1, least=False, shown="{:.2f} s"),
        ],
        notes=[
            "edge: pip install --no-deps --no-compile -r requirements.txt; edge_resolved: pip install llmasos-edge",
            "installed: all files of site-packages, 10^6 bytes each, without pip; of transformers, those of torch's "
            "build for processors, of transformers and of what they require",
        ],
    )
    harness.finish(result, options)


def made(work: Path, options: argparse.Namespace) -> Path:
    """Return the artifact; train and export, each in a process of its own, what is not given."""
    steps = [] if options.artifact else [harness.child("edge", "export", work)]
    if options.model:
        (work / "model").symlink_to(options.model.resolve(), target_is_directory=True)
    else:
        steps.insert(0, harness.child("predict", "train", work))
    for step in steps:
        run = harness.run_one(step, 0, work)
        harness.say(f"{step.name}: {run.values['process_seconds']:.0f} s")
        if run.error:
            raise SystemExit(run.error)
    return Path(options.artifact).resolve() if options.artifact else work / "artifact"


def exported(work: Path) -> dict[str, Any]:
    """Export the model in int8, calibrated on rows of the training."""
    from llmasos import LLM

    LLM.from_pretrained(work / "model").export(
        work / "artifact", "edge", quantize="int8", data=work / "validation.jsonl", calibration=work / "train.jsonl"
    )
    return {}


def installed(work: Path, artifact: Path, *, whole: bool = False) -> Path:
    """Install what the artifact asks for, or llmasos-edge as pip resolves it, into an environment of its own."""
    wheels, place = work / "wheels", work / ("whole" if whole else "small")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    if not wheels.exists():
        source = work / "source"  # a copy: building leaves files beside its sources
        for part in ("edge", "src"):
            shutil.copytree(harness.ROOT / part, source / part)
        _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source / "edge"))
    _run(sys.executable, "-m", "venv", "--without-pip", str(place))
    into = (*pip, "--python", str(place / "bin" / "python"), "install", "--find-links", str(wheels))
    wanted = ("llmasos-edge",) if whole else ("--no-deps", "--no-compile", "-r", str(artifact / "requirements.txt"))
    _run(*into, *wanted)
    return place


def _run(*command: str) -> None:
    harness.say(f"installing: {Path(command[-1]).name}")
    subprocess.run(command, check=True)


def size_of(place: Path) -> float:
    """Return the megabytes of all files that lie in an environment's site-packages."""
    (packages,) = place.glob("lib/python*/site-packages")
    return sum(file.stat().st_size for file in packages.rglob("*") if file.is_file()) / 1e6


def size_with_dependencies(names: Iterable[str]) -> float:
    """Return the megabytes of some installed distributions and all that they require, without extras."""
    waiting, seen, total = list(names), set[str](), 0
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another system
        files = [Path(str(found.locate_file(file))) for file in found.files or ()]
        total += sum(file.stat().st_size for file in files if file.is_file())
        waiting += [_name_of(text) for text in found.requires or () if "extra ==" not in text]
    return total / 1e6


def _name_of(requirement: str) -> str:
    from packaging.requirements import Requirement

    return Requirement(requirement).name


if __name__ == "__main__":
    main()
