"""Plan against reality: what `LLM.plan` says of time and memory, and what a run then takes.

On the quickstart's sample and on SST-2. Plan and run each happen in a fresh process. Memory is the
process's largest resident size (VmHWM); time is that of the whole ``finetune`` call.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from . import child, data, harness, machine
from .harness import ROOT
from .records import Column, Result, Run, goal, values

SAMPLE = ROOT / "src" / "llmasos" / "samples" / "support_en.jsonl"
# What `llmasos quickstart` sets for its sample, and the fine-tuning benchmark's settings.
OPTIONS: dict[str, dict[str, Any]] = {
    "quickstart": {"epochs": 12, "eval_split": 0.2, "seed": 0},
    "sst2": {"epochs": 1, "batch_size": 32, "learning_rate": 5e-5},
}


def main() -> None:
    """Plan and run, alternately, on both data sets."""
    parser = harness.parser(__doc__)
    data.add_options(parser)
    options = parser.parse_args()
    if options.child:
        what, _, name = options.child.partition("-")
        child.report(plan(name, Path(options.work)) if what == "plan" else run(name, Path(options.work), options.seed))
        return
    names = harness.chosen(list(OPTIONS), options.only)
    with harness.workspace() as work:
        if "sst2" in names:
            data.prepare(options.data, work, options.rows)
        steps = [harness.child("plan", f"{what}-{name}", work) for name in names for what in ("plan", "run")]
        runs = paired(harness.measure(steps, options.seeds, work))
    result = Result(
        name="plan",
        title="Plan against reality",
        columns=[
            Column("seconds_off", "time off by, %", 1),
            Column("planned_seconds", "planned, s", 1),
            Column("seconds", "taken, s", 1),
            Column("memory_off", "memory off by, %", 1),
            Column("planned_mb", "planned, MB", 0),
            Column("peak_mb", "taken, MB", 0),
            Column("planning_seconds", "planning took, s", 1),
        ],
        candidates=names,
        runs=runs,
        goals=[
            goal(
                f"{name}: {what} within {limit} %",
                _largest(runs, name, key),
                limit,
                least=False,
                shown="{:.1f} % at worst",
            )
            for name in names
            for what, key, limit in (("time", "seconds_off", 25), ("memory", "memory_off", 20))
        ],
        notes=["off by = (planned - taken) / taken; plan and run in processes of their own"],
        about={"options": OPTIONS},
    )
    harness.finish(result, options)


def paired(runs: list[Run]) -> list[Run]:
    """Join each round's plan and run of a data set, and add by how many per cent the plan was off."""
    out = []
    for real in (run for run in runs if run.candidate.startswith("run-")):
        name = real.candidate.removeprefix("run-")
        (planned,) = [run for run in runs if run.candidate == f"plan-{name}" and run.seed == real.seed]
        if real.error or planned.error:
            out.append(Run(name, real.seed, {"load": real.values["load"]}, error=real.error or planned.error))
            continue
        both = {**planned.values, **real.values}
        both["seconds_off"] = 100 * (both["planned_seconds"] / both["seconds"] - 1)
        both["memory_off"] = 100 * (both["planned_mb"] / both["peak_mb"] - 1)
        out.append(Run(name, real.seed, both))
    return out


def _largest(runs: list[Run], name: str, key: str) -> float | None:
    return max((abs(number) for number in values(runs, name, key)), default=None)


# -- the children -------------------------------------------------------------------------------------


def plan(name: str, work: Path) -> dict[str, Any]:
    """Ask for the plan."""
    model, arguments, options = _prepared(name, work)
    start = time.perf_counter()
    planned = model.plan(*arguments, **options)
    return {
        "planned_seconds": planned.seconds,
        "planned_mb": planned.memory_bytes / 1e6,
        "planning_seconds": time.perf_counter() - start,
    }


def run(name: str, work: Path, seed: int) -> dict[str, Any]:
    """Do what was planned."""
    model, arguments, options = _prepared(name, work)
    phases = child.Phases()
    model.finetune(*arguments, **options, output=work / f"model-{name}-{seed}", progress=phases)
    return {**phases.values(), "peak_mb": machine.peak_memory_mb()}


def _prepared(name: str, work: Path) -> tuple[Any, tuple[Any, Path], dict[str, Any]]:
    from llmasos import LLM, TextClassificationTask

    model, options = LLM.from_pretrained(data.MODEL), OPTIONS[name]
    if name == "quickstart":
        return model, (TextClassificationTask(), SAMPLE), options
    rows = {"eval_data": work / "validation.jsonl", **options}
    return model, (TextClassificationTask(num_labels=2), work / "train.jsonl"), rows


if __name__ == "__main__":
    main()
