"""Fine-tuning MiniLM on SST-2, from raw rows on disk to a saved model, against transformers.Trainer.

One epoch, batch 32, learning rate 5e-5 falling linearly without warm-up, no weight decay, gradient norm
clipped at 1.0, for every candidate. The clock covers reading, tokenising, training, one evaluation and
saving; it starts when the libraries are imported (import time is reported beside it). The accuracy is
that of the saved folder, computed by one function for all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import child, contest, data, flops, harness, machine
from .contest import BEST, Job
from .records import Column, Goal, Result, Run, goal, middle, ratio

COUNT_ROWS = 1024
CANDIDATES = ("trainer_defaults", "trainer_best", "llmasos_plain", "llmasos")
RECIPE: dict[str, Any] = {"epochs": 1, "batch": 32, "rate": 5e-5}


def main() -> None:
    """Measure the candidates, or be one of them."""
    parser = harness.parser(__doc__)
    data.add_options(parser)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child.report(work_of(options.child, Path(options.work), options.seed, count=options.count))
        return
    names = harness.chosen(CANDIDATES, options.only)
    with harness.workspace() as work:
        data.prepare(options.data, work, options.rows)
        candidates = [harness.child("finetune", name, work) for name in ("machine", *names)]
        runs = harness.measure(candidates, options.seeds, work)
        counters = [harness.child("finetune", name, work, "--count") for name in names]
        counts = harness.measure(counters, 1, work)
        tokens = data.tokens(data.model_folder(), [row["text"] for row in data.read(work / "train.jsonl")])
    harness.finish(result(with_shares(runs, counts, tokens), counts, names, tokens), options)


# -- the parent's sums --------------------------------------------------------------------------------


def with_shares(runs: list[Run], counts: list[Run], tokens: int) -> list[Run]:
    """Add the share of the matrix-product peak that each training loop reached, by useful and by executed work."""
    peak = max((middle(runs, "machine", kind) or 0.0 for kind in ("bf16_gflops", "fp32_gflops")), default=0.0)
    useful = flops.useful(data.model_folder(), tokens) / 1e9
    out = []
    for run in runs:
        seconds, more = run.values.get("train_seconds"), {}
        if seconds and peak:
            more["peak_share"] = 100 * useful / seconds / peak
            done = middle(counts, run.candidate, "executed_ratio")
            more |= {"executed_share": more["peak_share"] * done} if done else {}
        out.append(replace(run, values={**run.values, **more}))
    return out


def result(runs: list[Run], counts: list[Run], names: list[str], tokens: int) -> Result:
    """Put the table together."""
    return Result(
        name="finetune",
        title="Fine-tuning MiniLM on SST-2, 1 epoch, raw rows to saved model",
        columns=[
            Column("seconds", "seconds", 1),
            Column("quality", "accuracy (mean)", 4, "mean"),
            Column("train_seconds", "training loop, s", 1),
            Column("peak_share", "% of peak, useful work", 1),
            Column("executed_share", "% of peak, executed work", 1),
            Column("import_seconds", "imports, s", 1),
            Column("process_seconds", "whole process, s", 1),
        ],
        candidates=names,
        runs=runs,
        baseline="trainer_defaults",
        goals=goals(runs),
        notes=notes(runs, counts, tokens),
        about={"tokens": tokens, "counts": [run.values for run in counts], "trainer_best": BEST},
    )


def goals(runs: list[Run]) -> list[Goal]:
    """Compare with what was aimed at."""
    defaults, best = (ratio(runs, "llmasos", f"trainer_{name}", "seconds") for name in ("defaults", "best"))
    ours, theirs = (middle(runs, name, "quality", "mean") for name in ("llmasos", "trainer_defaults"))
    gap = None if ours is None or theirs is None else 100 * (ours - theirs)
    share = middle(runs, "llmasos", "peak_share")
    return [
        goal("at least 5x faster than Trainer with its defaults", defaults, 5, shown="{:.2f}x"),
        goal("at least 1.8x faster than Trainer with its best flags", best, 1.8, shown="{:.2f}x"),
        goal("mean accuracy at most 0.5 points below Trainer's", gap, -0.5, shown="{:+.2f} points"),
        goal("at least 60 % of the matrix-product peak in the training loop", share, 60, shown="{:.1f} %"),
    ]


def notes(runs: list[Run], counts: list[Run], tokens: int) -> list[str]:
    """Say what the numbers stand on."""
    peaks = {key: middle(runs, "machine", key) for key in ("bf16_gflops", "fp32_gflops", "read_gb_s")}
    done = {run.candidate: run.values.get("executed_ratio") for run in counts}
    work = ", ".join(f"{name} {ratio:.2f}" for name, ratio in done.items() if ratio)
    return [
        "measured peaks: "
        + ", ".join(f"{key} {number:.0f}" for key, number in peaks.items() if number is not None)
        + " (median of torch.mm on 2048^3, and of summing 512 MB)",
        f"useful work = {flops.FORMULA} = 6 x {flops.matrix_parameters(data.model_folder()):,} x {tokens:,}; "
        "its share of the peak = useful work / seconds in the training loop / the higher of the two peaks",
        f"executed work per useful work, counted on {COUNT_ROWS} rows at most: {work or 'not measured'} "
        "(attention products and padding add to it, skipped work takes away)",
        f"trainer_best: {', '.join(f'{key}={value!r}' for key, value in BEST.items())}",
    ]


# -- the children -------------------------------------------------------------------------------------


def work_of(name: str, work: Path, seed: int, *, count: bool) -> dict[str, Any]:
    """Do one candidate's work in this process."""
    if name == "machine":
        return machine.peaks()
    if count:
        return counted(CHILDREN[name], name, work)
    train, validation = (work / f"{split}.jsonl" for split in data.SPLITS)
    job = Job(name, train, validation, work / f"model-{name}-{seed}", seed)
    return {**CHILDREN[name](job), "quality": data.accuracy(job.output, data.read(validation))}


def counted(train_once: Callable[..., dict[str, Any]], name: str, work: Path) -> dict[str, Any]:
    """Count what is executed per useful operation, on rows enough for typical batches (untimed)."""
    small = work / f"count-{name}"
    small.mkdir()
    data.prepare(work, small, COUNT_ROWS, evaluation=8)  # hardly any evaluation: training is meant
    rows = data.read(small / "train.jsonl")
    tokens = data.tokens(data.model_folder(), [row["text"] for row in rows])
    with flops.counted() as counter:
        train_once(Job(name, small / "train.jsonl", small / "validation.jsonl", small / "model", 0))
    needed = flops.useful(data.model_folder(), tokens)
    return {"executed_ratio": counter.get_total_flops() / needed, "rows": len(rows)}


def trainer(job: Job) -> dict[str, Any]:
    """Train with transformers.Trainer in the way that its documentation shows."""
    child.require("accelerate")
    start = time.perf_counter()
    import numpy as np
    from datasets import load_dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    imports = time.perf_counter() - start
    laps = child.Laps()
    set_seed(job.seed)
    model = AutoModelForSequenceClassification.from_pretrained(data.model_folder(), num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(data.model_folder())
    rows = load_dataset("json", data_files={"train": str(job.train), "validation": str(job.validation)})
    rows = rows.map(lambda batch: tokenizer(batch["text"], truncation=True), batched=True)
    laps.lap("prepare")
    loop = Trainer(
        model=model,
        args=TrainingArguments(**contest.arguments(job, **RECIPE)),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DataCollatorWithPadding(tokenizer=tokenizer),
        processing_class=tokenizer,
        compute_metrics=lambda scored: {"accuracy": float(np.mean(scored[0].argmax(-1) == scored[1]))},
    )
    return {**contest.run(loop, laps, lambda: loop.save_model(str(job.output))), "import_seconds": imports}


def llmasos(job: Job) -> dict[str, Any]:
    """Train with this project, as its README shows; the laps follow the phases that the run reports."""
    from llmasos import TextClassificationTask

    modules = ("sklearn.metrics", "transformers.models.bert.modeling_bert")
    return contest.llmasos(job, lambda: TextClassificationTask(num_labels=2), modules=modules, **RECIPE)


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "trainer_defaults": trainer,
    "trainer_best": trainer,
    "llmasos_plain": llmasos,
    "llmasos": llmasos,
}

if __name__ == "__main__":
    main()
