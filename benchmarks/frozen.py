"""Fine-tuning a part of MiniLM on SST-2: the frozen layers run once a row, or in every epoch.

Three epochs, batch 32, with dropout 0, so that both compute the same (``activation_cache=auto``); the head and the
last two layers (``last-2``), the last one (``last-1``), and the head alone. The clock covers reading, tokenising,
training, three evaluations and saving. The accuracy is that of the saved folder, computed by one function for all.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from . import child, data, harness
from .records import Column, Result, Run, goal, middle, ratio

PARTS = ("last-2", "last-1", "head")
RECIPE: dict[str, Any] = {"epochs": 3, "batch_size": 32, "learning_rate": 2e-4, "dropout": 0.0}


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__)
    data.add_options(parser)
    options = parser.parse_args()
    if options.child:
        child.report(train(options.child, Path(options.work), options.seed))
        return
    names = harness.chosen([f"{part}{how}" for part in PARTS for how in ("_again", "_cached")], options.only)
    with harness.workspace() as work:
        few = options.rows and max(32, options.rows // 77)  # as many for each training row as in all of SST-2
        data.prepare(options.data, work, options.rows, evaluation=few)
        runs = harness.measure([harness.child("frozen", name, work) for name in names], options.seeds, work)
    harness.finish(result(runs, names), options)


def train(name: str, work: Path, seed: int) -> dict[str, Any]:
    """Train one part, from raw rows to a saved model, with or without the cache."""
    from llmasos import LLM, TextClassificationTask

    part, _, how = name.partition("_")
    output = work / f"{name}-{seed}"
    laps, start, processor = child.Phases(), time.perf_counter(), time.process_time()
    run = LLM.from_pretrained(data.MODEL).finetune(
        TextClassificationTask(num_labels=2), work / "train.jsonl", eval_data=work / "validation.jsonl", output=output,
        trainable=part, activation_cache="off" if how == "again" else "auto", seed=seed, progress=laps, **RECIPE,
    )  # fmt: skip
    spent = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - processor}
    record = json.loads((run.path / "run" / "run.json").read_text())
    notes = [note for note in run.notes if "activation cache" in note]
    return {**laps.values(), **spent, "quality": data.accuracy(output, data.read(work / "validation.jsonl")),
            "precision": record["config"]["precision"], "notes": notes}  # fmt: skip


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    notes = {note for run in runs for note in run.values.get("notes", ())}
    goals = []
    for part in PARTS:
        again, cached = f"{part}_again", f"{part}_cached"
        qualities = [middle(runs, name, "quality", "mean") for name in (cached, again)]
        change = None if None in qualities else abs(qualities[0] - qualities[1])  # type: ignore[operator]
        goals += [
            goal(f"{part}: at least twice as fast with the cache", ratio(runs, cached, again, "seconds"), 2.0,
                 shown="{:.2f}x"),
            goal(f"{part}: the same accuracy, to half a point", change, 0.005, least=False, shown="{:.4f} apart"),
        ]  # fmt: skip
    return Result(
        name="frozen",
        title="Fine-tuning a part of MiniLM on SST-2, 3 epochs, raw rows to saved model",
        columns=[
            Column("seconds", "seconds", 1),
            Column("quality", "accuracy (mean)", 4, "mean"),
            Column("train_seconds", "training loop, s", 1),
            Column("processor_seconds", "processor seconds", 1),
        ],
        candidates=names,
        runs=runs,
        goals=goals,
        notes=sorted(notes),
    )


if __name__ == "__main__":
    main()
