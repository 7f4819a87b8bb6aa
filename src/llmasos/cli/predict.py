"""``llmasos predict``: get a saved model's answers, for texts given in any of three ways."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import secrets
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TextIO

import typer

from ..core.atomic import full_disk
from ..core.config import PredictConfig, WriteConfig
from ..core.errors import DataError, NotFittedError, UsageError
from ..core.events import Event, Note
from ..progress import duration
from .options import Columns, check, config_flags, parse_columns, with_flags, writing_flags
from .output import AsJson, full_path, say, show_json

if TYPE_CHECKING:
    from ..llm import LLM
    from ..tasks.base import Task

EXAMPLES = """
llmasos predict my-model "Where is my parcel?" "I cannot log in"
llmasos predict my-model --data in.jsonl --output out.jsonl
llmasos predict /shared/my-model --data /shared/in.jsonl --output out.jsonl --cluster auto
llmasos predict my-translator "Good morning" --num-beams 4
cat messages.txt | llmasos predict my-model > answers.jsonl
"""


class Answer(NamedTuple):
    """A row as it came in, and the prediction for it, both as JSON types; the prediction also as one line."""

    row: dict[str, Any]
    content: dict[str, Any]
    line: str

    @property
    def labels(self) -> list[str]:
        """The labels that were given, if it is labels that the task gives."""
        one = [self.content["label"]] if "label" in self.content else []
        return list(map(str, self.content.get("labels", one)))


class Written(NamedTuple):
    """How many answers a file has, and how often each label was given, where answers are labels."""

    rows: int
    labels: Counter[str]


@with_flags(*config_flags(PredictConfig), *writing_flags(PredictConfig))
def run(
    model: Annotated[str, typer.Argument(metavar="DIR", help="folder of a tuned model")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="texts to answer")] = None,
    *,
    data: Annotated[str | None, typer.Option(metavar="FILE", help="a file of texts; labels are not needed")] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help=".jsonl, or .csv and .tsv (without the scores of all labels)")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the output file")] = False,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="answer the file on Ray: host:port, auto or local"),
    ] = None,
    columns: Columns = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Get a tuned model's answers, in the order of the texts.

    Texts come as arguments, from a file, or from standard input, one a line. Answers go to standard
    output as they come: readable on a terminal, else one JSON object a line. With --json they are
    collected into one document.
    """
    check(options, PredictConfig, WriteConfig)
    mapping = parse_columns(columns)
    if data and texts:
        raise UsageError("texts and --data are both given", hint="pass one of them")
    if cluster and not data:
        raise UsageError("--cluster without --data", hint="write the texts into a file that all machines see")
    write = _writer(Path(output), overwrite) if output else None
    from ..llm import LLM

    say(f"loading {model}")
    llm = LLM.from_pretrained(model)
    rows = _rows(llm, texts, data, mapping)
    answers = (
        _on_cluster(model, rows, data, mapping, options, cluster) if cluster and data else _answers(llm, rows, options)
    )
    if write is None and as_json:
        show_json({"model": model, "predictions": [{**a.row, **a.content} for a in answers]})
        return
    if write is None:
        _show(answers, readable=sys.stdout.isatty())
        return
    start = time.perf_counter()
    written = write(answers)
    seconds = time.perf_counter() - start
    if as_json:
        labels = {"labels": written.labels} if written.labels else {}
        show_json({"output": output, "rows": written.rows, "seconds": seconds, **labels})
    else:
        say(f"{written.rows:,} predictions in {duration(seconds)}: {output}")


def _rows(
    llm: LLM, texts: list[str] | None, data: str | None, columns: dict[str, str] | None
) -> Iterator[dict[str, Any]]:
    if llm.task is None:
        raise NotFittedError(f"{llm.ref} has no task yet", hint="finetune it first")
    if data:
        from ..data.dataset import stream

        return stream(data, llm.task.fields, columns=columns)
    field = _text_field(llm.task)
    return ({field: text} for text in texts) if texts else _typed_rows(field)


def _text_field(task: Task) -> str:
    """Return the field that texts given one by one are meant for."""
    fields = [field for field in task.fields if not field.is_answer]
    needed = [field.name for field in fields if field.required]
    texts = [field.name for field in fields if field.kind in ("text", "content")]
    if not texts or any(name != texts[0] for name in needed):
        raise UsageError(
            f"a row of {task.tag} is more than one text: {', '.join(needed or texts)}",
            hint="write the rows into a file and pass --data",
        )
    return texts[0]


def _typed_rows(field: str) -> Iterator[dict[str, Any]]:
    if sys.stdin.isatty():
        say("type a text and Enter; end with Ctrl-D")
    number = 0
    try:
        for number, line in enumerate(sys.stdin, 1):  # noqa: B007  the handler below names the line
            yield {field: line.rstrip("\r\n")}
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input, near line {number + 1}: not UTF-8", hint="convert it, for example with iconv"
        ) from error


def _answers(
    llm: LLM, rows: Iterable[dict[str, Any]], options: dict[str, Any], listen: Callable[[Event], None] | None = None
) -> Iterator[Answer]:
    """Pair every row with its prediction; holds only the rows that the model is at work on."""
    waiting: deque[dict[str, Any]] = deque()

    def remembered() -> Iterator[dict[str, Any]]:
        for row in rows:
            waiting.append(row)
            yield row

    for prediction in llm.predict(remembered(), progress=listen or _say_note, **options):
        row, content = waiting.popleft(), prediction.as_dict()
        yield Answer(row, content, _line_of(row, prediction, content))


class _Share:
    """What one worker of a cluster computes: it opens the model and the file once, and reads on in it."""

    def __init__(self, model: str, data: str, columns: dict[str, str] | None, options: dict[str, Any]) -> None:
        from ..llm import LLM

        self.llm, self.data, self.columns, self.options = LLM.from_pretrained(model), data, columns, options
        self.rows: Iterator[dict[str, Any]] = iter(())
        self.at: int | None = None

    def __call__(self, start: int, stop: int) -> str:
        """Answer some rows of the file; return the answers and the notes as JSON."""
        if self.at is None or start < self.at:
            self.rows, self.at = _rows(self.llm, None, self.data, self.columns), 0
        notes: list[str] = []
        rows = list(itertools.islice(self.rows, start - self.at, stop - self.at))
        self.at = stop
        listen = partial(_say_note, say=notes.append)
        return json.dumps({"answers": list(_answers(self.llm, rows, self.options, listen)), "notes": notes})


def _on_cluster(
    model: str, rows: Iterable[dict[str, Any]], data: str, columns: dict[str, str] | None, options: dict[str, Any],
    cluster: str,
) -> Iterator[Answer]:  # fmt: skip
    """Let the machines of a Ray cluster answer a file's rows, which are read here first, to be counted and checked."""
    from ..cluster import dealt

    model, data = full_path(model) if Path(model).expanduser().exists() else model, full_path(data)
    count = sum(1 for _ in rows)
    for result in dealt(partial(_Share, model, data, columns, options), count, cluster):
        content = json.loads(result)
        for note in content["notes"]:
            say(note)
        yield from (Answer(*answer) for answer in content["answers"])


def _line_of(row: dict[str, Any], prediction: Any, content: dict[str, Any]) -> str:
    """Word an answer: as it words itself (``__str__``), by label and score, or as JSON; then the row's texts."""
    if "__str__" in vars(type(prediction)):
        words = str(prediction)
    elif "label" in content and "score" in content:
        label = ", ".join(map(str, content["labels"])) or "(none)" if "labels" in content else content["label"]
        words = f"{label}  {content['score']:.3f}"
    else:
        words = json.dumps(content, ensure_ascii=False)
    return f"{words}  {' | '.join(map(_shown, row.values()))}"


def _shown(value: Any) -> str:
    """Word the content of a field; words in a list as the sentence that they are."""
    words = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return " ".join(value) if words else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _say_note(event: Event, say: Callable[[str], None] = say) -> None:
    if isinstance(event, Note):
        say(event.text)


def _show(answers: Iterable[Answer], *, readable: bool) -> None:
    for answer in answers:
        print(answer.line if readable else _json(answer), flush=True)


def _json(answer: Answer) -> str:
    return json.dumps({**answer.row, **answer.content}, ensure_ascii=False)


def _writer(path: Path, overwrite: bool) -> Callable[[Iterable[Answer]], Written]:
    """Return what writes answers to a file that is there whole or not at all, and counts them and their labels."""
    kinds = {".jsonl": _write_jsonl, ".csv": _write_csv, ".tsv": _write_csv}
    if path.suffix not in kinds:
        raise UsageError(f"--output {path}: this kind of file is not written", hint=f"one of {', '.join(kinds)}")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists", hint="choose another file, or replace this one with --overwrite")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"the folder {path.absolute().parent} does not exist", hint="make it first")

    def write(answers: Iterable[Answer]) -> Written:
        rows, labels = 0, Counter[str]()

        def counted() -> Iterator[Answer]:
            nonlocal rows
            for answer in answers:
                rows += 1
                labels.update(answer.labels)
                yield answer

        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            with full_disk(path), fresh.open("w", encoding="utf-8", newline="") as file:
                kinds[path.suffix](counted(), file)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                fresh.unlink()
        return Written(rows, labels)

    return write


def _write_jsonl(answers: Iterable[Answer], file: TextIO) -> None:
    for answer in answers:
        file.write(_json(answer) + "\n")


def _write_csv(answers: Iterable[Answer], file: TextIO) -> None:
    writer = None
    for answer in answers:
        content = {**answer.row, **answer.content}
        cells = {k: json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for k, v in content.items()}
        cells.pop("scores", None)
        if writer is None:
            tabs = ".tsv." in Path(file.name).name
            writer = csv.DictWriter(file, list(cells), delimiter="\t" if tabs else ",", lineterminator="\n")
            writer.writeheader()
        writer.writerow(cells)
