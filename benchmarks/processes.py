"""What two processes cost: fine-tuning MiniLM on SST-2 in one process with two threads, and in two with one each.

The same steps, batches and seeds, without dropout, so that all compute the same losses. ``fsdp`` computes with
transformers' own forward and so is held against ``plain``, one process that does too. The seconds are those of the
training loop by the run's own record; the start of the processes is apart. A further run of each, with stopwatches in
every process, says where the time of a step goes.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from . import child, command, data, harness
from .records import Column, Result, Run, goal, middle

WAYS: dict[str, tuple[int, list[str]]] = {
    "one": (1, ["--threads", "2", "--backend", "single"]),
    "ddp": (2, ["--threads", "1", "--backend", "ddp"]),
    "plain": (1, ["--threads", "2", "--backend", "single", "--speed", "buckets"]),
    "fsdp": (2, ["--threads", "1", "--backend", "fsdp", "--speed", "buckets"]),
}
AGAINST = {"ddp": "one", "fsdp": "plain"}
SIZES: dict[int, tuple[str, ...]] = {32: tuple(WAYS), 128: ("one", "ddp")}
"""Rows of a step, and the ways that take them."""
STEPS = 40
WARM = 5  # steps that the stopwatches leave out
LIMIT = 15.0  # percent


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__)
    data.add_options(parser)
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"optimiser steps at batch 32, half of it at 128 (default {STEPS})"
    )
    options = parser.parse_args()
    if options.child:
        child.report(train(options.child, Path(options.work), options.seed, options.steps))
        return
    names = harness.chosen([f"{way}_{size}" for size, ways in SIZES.items() for way in ways], options.only)
    with harness.workspace() as work:
        data.prepare(options.data, work, options.rows)
        steps = ("--steps", str(options.steps))
        runs = harness.measure([harness.child("processes", name, work, *steps) for name in names], options.seeds, work)
        watched = [harness.child("processes", f"{name}_watched", work, *steps) for name in names]
        runs += [named(run) for run in harness.measure(watched, 1, work)]
    harness.finish(result(compared(runs), names), options, partial=options.steps != STEPS)


def train(name: str, work: Path, seed: int, steps: int) -> dict[str, Any]:
    """Fine-tune in one way, with or without stopwatches."""
    way, size, *watched = name.split("_")
    processes, words = WAYS[way]
    steps = steps // (1 if size == str(min(SIZES)) else 2)
    words = [*words, "--batch-size", size, "--max-steps", str(steps), "--seed", str(seed), "--dropout", "0",
             "--checkpoint-minutes", "0"]  # fmt: skip
    found = command.finetune(work, f"{name}-{seed}", words, processes=processes, watch=bool(watched))
    return {**where([rank["steps"] for rank in found["seen"]]), "losses": found["losses"]} if watched else found


def where(ranks: list[list[dict[str, Any]]]) -> dict[str, float]:
    """Say where the time of a step goes, in milliseconds: mean over processes, median over steps.

    Of a collective, the shortest time in any process is ``telling``; what others take longer is ``waiting`` for the
    last one to come. ``uneven``: by how many percent the slowest process computes longer than they do on average.
    """
    skip = min(WARM, len(ranks[0]) - 1)
    parts: dict[str, list[float]] = {key: [] for key in ("step", "compute", "update", "telling", "waiting", "other")}
    uneven = []
    for step in zip(*(rank[skip:] for rank in ranks), strict=True):
        mean = {key: statistics.mean(rank[key] for rank in step) for key in ("whole", "compute", "update")}
        each = list(zip(*(rank["collectives"] for rank in step), strict=True))
        telling = sum(map(min, each))
        waiting = sum(map(statistics.mean, each)) - telling
        other = mean["whole"] - mean["compute"] - mean["update"] - telling - waiting
        found = (mean["whole"], mean["compute"], mean["update"], telling, waiting, other)
        for key, seconds in zip(parts, found, strict=True):
            parts[key].append(1000 * seconds)
        uneven.append(100 * (max(rank["compute"] for rank in step) / mean["compute"] - 1))
    middles = {f"{key}_ms": statistics.median(numbers) for key, numbers in parts.items()}
    return middles | {"telling_share": 100 * middles["telling_ms"] / middles["step_ms"],
                      "uneven": statistics.median(uneven)}  # fmt: skip


def named(run: Run) -> Run:
    """Return a run with stopwatches as one of the candidate that it watched."""
    return Run(run.candidate.removesuffix("_watched"), run.seed, run.values, run.missing, run.error)


def compared(runs: list[Run]) -> list[Run]:
    """Add by how many percent two processes took longer than one in the same round, and how far their losses part."""
    timed = {(run.candidate, run.seed): run.values for run in runs if "seconds" in run.values}
    for (name, seed), values in timed.items():
        way, _, size = name.partition("_")
        base = timed.get((f"{AGAINST.get(way)}_{size}", seed))
        if base:
            values["overhead"] = 100 * (values["seconds"] / base["seconds"] - 1)
            values["apart"] = command.difference(values["losses"], base["losses"])
    return runs


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    goals = []
    for name in names:
        way, _, size = name.partition("_")
        if way in AGAINST:
            overhead, apart = (middle(runs, name, key, "median") for key in ("overhead", "apart"))
            text = f"batch {size}: {way} at most {LIMIT:.0f} % slower than one process"
            goals.append(goal(text, overhead, LIMIT, least=False, shown="{:+.1f} %"))
            text = f"batch {size}: {way} has the losses of one process, to 2e-4 of each"
            goals.append(goal(text, apart, 2e-4, least=False, shown="{:.1e}"))
    precisions = sorted({run.values["precision"] for run in runs if "precision" in run.values})
    return Result(
        name="processes",
        title="Two processes of one thread against one process of two threads, on one machine",
        columns=[
            Column("seconds", "training loop, s", 2),
            Column("overhead", "overhead, %", 1),
            Column("outside_seconds", "outside the loop, s", 1),
            Column("step_ms", "step, ms", 1),
            Column("compute_ms", "forward and backward, ms", 1),
            Column("update_ms", "update, ms", 1),
            Column("telling_ms", "collectives, ms", 1),
            Column("telling_share", "collectives, %", 1),
            Column("waiting_ms", "waiting, ms", 1),
            Column("other_ms", "other, ms", 1),
            Column("uneven", "slower rank, %", 1),
        ],
        candidates=names,
        runs=runs,
        goals=goals,
        notes=[
            "overhead: of ddp against one, of fsdp against plain, in the same round",
            f"from the step on: a run of its own with stopwatches, median of the steps after the first {WARM}",
            f"precision {', '.join(precisions)}; dropout 0; no evaluation",
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()
