"""What a checkpoint every 50 steps costs: fine-tuning MiniLM on SST-2, batch 32, with and without.

The seconds are those of the training loop by the run's own record. A further run with stopwatches says how long the
loop was held up by each checkpoint (it copies the state), how long the thread beside it wrote, and how much.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from . import child, command, data, harness
from .records import Column, Result, Run, goal, middle

NAMES = ("never", "every")
STEPS, EVERY = 160, 50
LIMIT = 3.0  # percent


def main() -> None:
    """Measure both, or be one of them."""
    parser = harness.parser(__doc__, seeds=3)
    data.add_options(parser)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimiser steps of each run (default {STEPS})")
    parser.add_argument("--every", type=int, default=EVERY, help=f"steps between checkpoints (default {EVERY})")
    options = parser.parse_args()
    if options.child:
        child.report(train(options.child, Path(options.work), options.seed, options.steps, options.every))
        return
    names = harness.chosen(NAMES, options.only)
    with harness.workspace() as work:
        data.prepare(options.data, work, options.rows)
        more = ("--steps", str(options.steps), "--every", str(options.every))
        runs = harness.measure([harness.child("checkpoints", name, work, *more) for name in names], options.seeds, work)
        watched = harness.measure([harness.child("checkpoints", "watched", work, *more)], 1, work)
        runs += [Run("every", run.seed, run.values, run.missing, run.error) for run in watched]
    usual = (options.steps, options.every) == (STEPS, EVERY)
    harness.finish(result(compared(runs), names, options.every), options, partial=not usual)


def train(name: str, work: Path, seed: int, steps: int, every: int) -> dict[str, Any]:
    """Fine-tune with or without checkpoints."""
    words = ["--threads", "2", "--batch-size", "32", "--max-steps", str(steps), "--seed", str(seed)]
    words += ["--checkpoint-minutes", "0"] if name == "never" else ["--checkpoint-steps", str(every)]
    found = command.finetune(work, f"{name}-{seed}", words, watch=name == "watched")
    return seen(found["seen"][0]) if name == "watched" else found


def seen(one: dict[str, Any]) -> dict[str, Any]:
    """Return what the stopwatches of a process say of a checkpoint: medians, in milliseconds and megabytes."""

    def median(part: str, key: str) -> float:
        return statistics.median(item[key] for item in one[part])

    return {"checkpoints": len(one["written"]), "held_ms": 1000 * median("checkpoints", "held"),
            "copy_ms": 1000 * median("checkpoints", "copy"), "writing_ms": 1000 * median("written", "seconds"),
            "processor_ms": 1000 * median("written", "processor"), "megabytes": median("written", "bytes") / 1e6,
            "raw": one}  # fmt: skip


def compared(runs: list[Run]) -> list[Run]:
    """Add by how many percent the run with checkpoints took longer in the same round, and how far the losses part."""
    timed = {(run.candidate, run.seed): run.values for run in runs if "seconds" in run.values}
    for (name, seed), values in timed.items():
        base = timed.get(("never", seed))
        if name == "every" and base:
            values["overhead"] = 100 * (values["seconds"] / base["seconds"] - 1)
            values["apart"] = command.difference(values["losses"], base["losses"])
    return runs


def result(runs: list[Run], names: list[str], every: int) -> Result:
    """Put the table together."""
    overhead, apart = (middle(runs, "every", key) for key in ("overhead", "apart"))
    return Result(
        name="checkpoints",
        title=f"Fine-tuning MiniLM, batch 32, with a checkpoint every {every} steps and without",
        columns=[
            Column("seconds", "training loop, s", 2),
            Column("overhead", "overhead, %", 1),
            Column("megabytes", "a checkpoint, MB", 1),
            Column("held_ms", "holds the loop up, ms", 1),
            Column("copy_ms", "of that the copy, ms", 1),
            Column("writing_ms", "written beside it in, ms", 0),
            Column("processor_ms", "of that on a processor, ms", 0),
        ],
        candidates=names,
        runs=runs,
        goals=[
            goal(f"a checkpoint every {every} steps costs at most {LIMIT:.0f} %", overhead, LIMIT, least=False,
                 shown="{:+.1f} %"),
            goal("the losses are the same with checkpoints", apart, 0.0, least=False, shown="{:.1e} apart"),
        ],
        notes=[
            "overhead: against never, in the same round",
            "what concerns a single checkpoint: a run of its own with stopwatches, median of its checkpoints",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
