"""``llmasos data show``: see rows as the model will see them, token by token, and what of them is learned."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import UsageError
from .options import Job, job_flags, settle, task_flags, with_flags
from .output import AsJson, say, show_json

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from ..llm import LLM
    from ..tasks.base import Task

EXAMPLES = """
llmasos data show --data chats.jsonl --task text-generation --model my-decoder --row 3
llmasos data show --data train.jsonl --model my-model --rows 1-20 --max-length 256
llmasos data show --data train.jsonl --model my-model --json
llmasos data show --model my-model --step 12
"""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Token:
    """One token of a sequence; ``target`` is what is asked at its place, if that is not the token itself."""

    id: int
    text: str
    learned: bool
    target: str | None = None


@dataclass(frozen=True)
class Shown:
    """One row as encoded: its sequences, their targets where these do not lie along the tokens, what is wrong."""

    row: int
    sequences: list[list[Token]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    truncated: int = 0
    problem: str | None = None


@with_flags(*(flag for flag in job_flags() if flag.name not in ("model", "eval_data", "revision")), *task_flags())
def run(
    action: Annotated[str, typer.Argument(metavar="show", help="what to do: show")],
    *,
    model: Annotated[
        str | None, typer.Option(metavar="DIR", help="the model whose tokenizer and template count")
    ] = None,
    row: Annotated[int | None, typer.Option(metavar="N", help="the number of one row, from 1")] = None,
    rows: Annotated[str | None, typer.Option(metavar="A-B", help="the numbers of some rows (default 1-3)")] = None,
    step: Annotated[
        int | None, typer.Option(metavar="N", help="the rows of an optimiser step, from 1, of the run that made DIR")
    ] = None,
    max_length: Annotated[int | None, typer.Option(metavar="N", help="tokens beyond it are cut")] = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Show rows as the model will see them: their tokens, and in colour those that it learns to give.

    Without colour (NO_COLOR, or no terminal) what is learned stands in [[double brackets]]. Without --task the
    task is the one that the model was tuned for.
    """
    if action != "show":
        raise UsageError(f"there is no action {action!r}", hint="llmasos data show --data FILE --model DIR")
    given = [name for name, value in (("--row", row), ("--rows", rows), ("--step", step)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} are both given", hint="pass one of them")
    from ..llm import LLM

    if step is not None:
        found, tag, source = _of_step(Path(model or ""), step, options.get("data"))
    else:
        job = settle({**options, "model": model})
        llm = LLM.from_pretrained(job.model)
        task = job.task if options.get("task") else llm.task
        if task is None:
            raise UsageError(f"{job.model} has no task yet", hint="say which is meant: --task text-generation")
        found, tag, source = list(_shown(llm, task, job, row=row, rows=rows, max_length=max_length)), task.tag, job.data
    if as_json:
        show_json({"data": source, "task": tag, "rows": [asdict(one) for one in found]})
        return
    is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    for one in found:
        _print(one, coloured=is_coloured)


def _shown(
    llm: LLM, task: Task, job: Job, *, row: int | None, rows: str | None, max_length: int | None
) -> Iterator[Shown]:
    from ..data.dataset import read
    from ..loading import load_config, longest_input

    task = task.suited(load_config(llm.located.path))
    data = read(job.data, task.fields, columns=job.columns)
    numbers = _numbers(row, rows, len(data))
    task, notes = task.fitted(_good(data, task), llm.tokenizer)
    for note in notes:
        say(note)
    longest = max_length or longest_input(llm.located.path, llm.tokenizer)
    for number in numbers:
        yield _encoded(task, data.rows([number - 1])[0], number, llm.tokenizer, longest)


def _of_step(folder: Path, step: int, data: str | None) -> tuple[list[Shown], str, str]:
    """Encode the rows of one step of a recorded run; return the task's tag and the data too."""
    from ..llm import LLM
    from ..training.steps import rows_of_step

    found = rows_of_step(folder, step, data)
    tokenizer = LLM.from_pretrained(found.model).tokenizer
    say(f"step {step}: {len(found.rows)} rows of {found.data}")
    shown = [_encoded(found.task, row, number, tokenizer, found.max_length) for number, row in found.rows]
    return shown, found.task.tag, found.data


def _numbers(row: int | None, rows: str | None, count: int) -> range:
    text = rows or str(row or f"1-{min(3, count)}")
    first, dash, last = text.partition("-")
    if not (first.isdigit() and (last.isdigit() or not dash)):
        raise UsageError(f"--rows {text} names no rows", hint="two numbers, from 1: --rows 5-8")
    numbers = range(int(first), int(last if dash else first) + 1)
    if not numbers or numbers[0] < 1 or numbers[-1] > count:
        raise UsageError(f"there are no rows {text}", hint=f"the data has rows 1 to {count}")
    return numbers


def _good(data: Dataset, task: Task) -> Iterator[Any]:
    return (row for rows in data.batches() for row in rows if task.problem(row) is None)


def _encoded(task: Task, row: Any, number: int, tokenizer: Any, longest: int) -> Shown:
    """Encode one row, with its targets laid beside its tokens where they lie along them."""
    from ..tasks.base import IGNORED

    problem = task.problem(row)
    if problem is None:
        encoding = task.encode([row], tokenizer, longest)
        problem = (encoding.problems or {}).get(0)
    if problem is not None:
        return Shown(number, problem=f"{problem.field}: found {problem.found}, expected {problem.expected}")
    names = task.head_config().get("id2label", {})
    is_text = task.output == "vocabulary"
    targets = encoding.targets if isinstance(encoding.targets, list) else None
    sequences, aside = [], []
    for i, ids in enumerate(encoding.ids):
        asked = None if targets is None else targets[i].tolist()
        texts = _texts(ids.tolist(), tokenizer)
        if asked is None or len(asked) != len(ids):
            sequences.append([Token(*pair, False) for pair in zip(ids.tolist(), texts, strict=True)])
            aside += [] if asked is None else ["".join(_texts([a for a in asked if a != IGNORED], tokenizer))]
            continue
        sequences.append(_laid(ids.tolist(), texts, asked, lambda a: _name(a, names, tokenizer if is_text else None)))
    if targets is None and encoding.targets is not None:
        aside = [_line(target.tolist(), names) for target in encoding.targets]
    return Shown(number, sequences, aside, encoding.truncated[0])


def _laid(ids: list[int], texts: list[str], asked: list[int], named: Any) -> list[Token]:
    """Join tokens and targets: the next token's mark is on that token, any other target is named beside its place."""
    from ..tasks.base import IGNORED

    if all(a in (IGNORED, b) for a, b in zip(asked, ids[1:], strict=False)) and any(a != IGNORED for a in asked[:-1]):
        learned = [False, *(a != IGNORED for a in asked[:-1])]
        return [Token(i, text, mark) for i, text, mark in zip(ids, texts, learned, strict=True)]
    return [
        Token(i, text, a != IGNORED, None if a == IGNORED else named(a))
        for i, text, a in zip(ids, texts, asked, strict=True)
    ]


def _name(target: int, names: dict[int, str], tokenizer: Any) -> str:
    return tokenizer.decode([target]) if tokenizer is not None else names.get(target, str(target))


def _line(target: Any, names: dict[int, str]) -> str:
    return str(names.get(target, target) if isinstance(target, int) else target)


def _texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text of each token; of a character that several tokens make, with the last of them.

    A token is decoded behind its neighbours, since what it looks like depends on them (spaces).
    """
    out: list[str] = []
    begin = 0  # where the last whole character began
    for i in range(len(ids)):
        start = max(0, begin - 3)
        before = tokenizer.decode(ids[start:begin], clean_up_tokenization_spaces=False)
        text = tokenizer.decode(ids[start : i + 1], clean_up_tokenization_spaces=False)[len(before) :]
        if text.endswith("\ufffd") and i + 1 < len(ids) and i - begin < 4:
            out.append("")
            continue
        out.append(text)
        begin = i + 1
    return out


def _print(one: Shown, *, coloured: bool) -> None:
    if one.problem:
        print(f"row {one.row}: {one.problem}\n")
        return
    tokens = sum(map(len, one.sequences))
    learned = sum(token.learned for tokens in one.sequences for token in tokens)
    cut = f", {one.truncated} more are cut" if one.truncated else ""
    print(f"row {one.row}: {tokens} tokens, {learned} to learn{cut}")
    for sequence in one.sequences:
        _print_sequence(sequence, coloured=coloured)
    for target in one.targets:
        print(f"-> {_visible(target)}")
    print()


def _print_sequence(tokens: list[Token], *, coloured: bool) -> None:
    parts: list[tuple[str, bool]] = []
    for token in tokens:
        text = _visible(token.text) + ("" if token.target is None else f"{{{_visible(token.target)}}}")
        if parts and parts[-1][1] == token.learned:
            parts[-1] = (parts[-1][0] + text, token.learned)
        else:
            parts.append((text, token.learned))
    if not coloured:
        print("".join(f"[[{text}]]" if learned else text for text, learned in parts))
        return
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text.assemble(*((text, "green" if learned else "dim") for text, learned in parts)))


def _visible(text: str) -> str:
    """Return a text in which what would steer a terminal is written out."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
