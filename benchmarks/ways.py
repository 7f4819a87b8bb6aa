"""The ways to compute a training, as ``llmasos plan`` tries them, for several tasks: seconds, memory, and how equal.

Each is the training of one epoch over the first rows of a data set, foreseen from measured steps. The goal is that what
``speed="auto"`` takes by rule is the fastest, or within what the plan itself takes for chance.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import child, contest, data, harness
from .records import Column, Goal, Result, Run, goal, middle

SHARED = data.SST2.parent
ROWS = 1000
CASES = {"sst2": "sst2", "wnut17": "wnut17", "policyqa": "policyqa", "stsb": "stsb", "multi30k": "multi30k"}
"""Cases and the folders of their data."""


def main() -> None:
    """Try the ways for each case, or be one case."""
    parser = harness.parser(__doc__)
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the data sets")
    options = parser.parse_args()
    if options.child:
        child.report(tried(options.child, Path(options.work), options.seed))
        return
    names = harness.chosen(list(CASES), options.only)
    with harness.workspace() as work:
        for name in names:
            (work / name).mkdir()
            contest.unpack(options.data / CASES[name], work / name, options.rows or ROWS)
        runs = harness.measure([harness.child("ways", name, work) for name in names], options.seeds, work)
    harness.finish(result(runs, names), options)


def tried(name: str, work: Path, seed: int) -> dict[str, Any]:
    """Plan one epoch, and return what was tried."""
    from llmasos import (
        LLM,
        QuestionAnsweringTask,
        SentenceSimilarityTask,
        TextClassificationTask,
        TokenClassificationTask,
        TranslationTask,
    )
    from llmasos.scratch import train_tokenizer

    tasks = {
        "sst2": TextClassificationTask(num_labels=2),
        "wnut17": TokenClassificationTask(),
        "policyqa": QuestionAnsweringTask(),
        "stsb": SentenceSimilarityTask(score_range=(0, 5)),
        "multi30k": TranslationTask(source_language="en", target_language="de"),
    }
    rows, columns = work / name / "train.jsonl", None
    if name == "multi30k":
        texts = [row[side] for row in data.read(rows) for side in ("en", "de")]
        words = train_tokenizer(texts, 4096, output=work / f"tokenizer-{seed}", overwrite=True)
        columns = {"source": "en", "target": "de"}
        llm = LLM.from_config("marian-7m", tokenizer=words.path, output=work / f"base-{seed}", overwrite=True)
    else:
        llm = LLM.from_pretrained(data.MODEL)
    plan = llm.plan(
        tasks[name], rows, eval_data=work / name / "validation.jsonl", columns=columns, epochs=1, seed=seed,
        max_length=256, allow_truncated=1.0, allow_unknown=1.0,
    )  # fmt: skip
    forward = next(choice.value for choice in plan.choices if choice.name == "forward")
    rule = (
        "packed" if forward == "packed" else "buckets",
        next(c.value for c in plan.choices if c.name == "precision"),
    )
    return {
        "ways": {named(one): way(one) for one in plan.candidates},
        "rule": ",".join([rule[0], *(["bf16"] if rule[1] == "bfloat16" else [])]),
    }


def named(one: Any) -> str:
    """Name a candidate."""
    return f"{one.name}, {one.micro_batch_size} rows at once" if one.micro_batch_size else str(one.name)


def way(one: Any) -> dict[str, Any]:
    """Return the numbers of a candidate, or why there are none."""
    if one.seconds is None:
        return {"missing": one.verdict}
    numbers = {"seconds": one.seconds, "mb": one.memory_bytes / 1e6, "gain": one.gain}
    return numbers | ({} if one.gradient_difference is None else {"apart": 1e6 * one.gradient_difference})


def expanded(runs: list[Run]) -> list[Run]:
    """Make a run of each way that was tried."""
    out = []
    for run in runs:
        if run.error:
            out.append(run)
            continue
        load = {"load": run.values["load"]} if "load" in run.values else {}
        for name, numbers in run.values["ways"].items():
            missing = numbers.get("missing")
            kept = {} if missing else numbers
            out.append(replace(run, candidate=f"{run.candidate}: {name}", values={**load, **kept}, missing=missing))
    return out


def result(runs: list[Run], names: list[str]) -> Result:
    """Put the table together."""
    ways = expanded(runs)
    candidates = list(dict.fromkeys(run.candidate for run in ways))
    return Result(
        name="ways",
        title=f"Ways to compute a training, one epoch over {ROWS} rows",
        columns=[
            Column("seconds", "steps, s", 1),
            Column("gain", "times as fast as plain", 2),
            Column("mb", "memory, MB", 0),
            Column("apart", "gradient apart, millionths", 2),
        ],
        candidates=candidates,
        runs=ways,
        goals=[goal_of(name, runs, ways) for name in names],
        notes=[
            "gradient apart: from that of plain, relative to what one row brings; loss and gradient without dropout"
        ],
    )


def goal_of(name: str, runs: list[Run], ways: list[Run]) -> Goal:
    """Say how far what the rule takes is behind the fastest."""
    text = f"{name}: what auto takes is at most 5 % slower than the fastest"
    rules = [run.values["rule"] for run in runs if run.candidate == name and not run.error]
    times = {
        one: middle(ways, one, "seconds") for one in {run.candidate for run in ways} if one.startswith(f"{name}: ")
    }
    measured = [seconds for seconds in times.values() if seconds]
    rule = times.get(f"{name}: {statistics.mode(rules)}") if rules else None
    return goal(text, rule / min(measured) if rule and measured else None, 1.05, least=False, shown="{:.2f}x")


if __name__ == "__main__":
    main()
