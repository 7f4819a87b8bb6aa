"""Golden rows: a few rows with what the model gave for them, by which every copy of it is compared with it.

The rows are the task's own (``Task.golden``), so that none of a user's goes into a folder that may be given away. What
the model gives is found once, by transformers' own forward in float32, one row at a time; wherever the model runs
afterwards, in whatever format, it must make the same tokens of the rows and give the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from .core import bundle
from .core.errors import BundleError, DataError, ParityError
from .data.batching import Batch, gather
from .data.encoding import Encoded, flattened
from .metrics.base import finite
from .tasks.base import Row, Task

if TYPE_CHECKING:
    from .engines._writing import Writing
    from .engines.base import Author, Batcher, Engine

FILE = "golden.json"
FORMAT = 1
LENGTH = 128
"""Most tokens of a golden row."""
WRITTEN = 16
"""Most tokens of a golden answer."""


@dataclass(frozen=True)
class Golden:
    """Golden rows.

    Args:
        rows: the rows, by the task's fields.
        max_length: what they are cut to.
        ids: of each example, the tokens of its sequences, longest first; of one that writes, its prompt.
        outputs: of each example, what the model gives (``Task.output``), in the same order; of one that writes, what
            ``engines/base.py``'s ``Author.forced`` gives for its answer.
        answers: of each example of a model that writes, the likeliest tokens; else None.
        ends: ids that end an answer.
    """

    rows: Sequence[Row]
    max_length: int
    ids: list[list[list[int]]]
    outputs: list[NDArray[np.float32]]
    answers: list[list[int]] | None = None
    ends: tuple[int, ...] = ()

    @property
    def largest(self) -> float:
        """The largest output: what differences compare with."""
        return max((float(np.abs(one).max(initial=0.0)) for one in self.outputs), default=0.0)

    def write(self, folder: Path) -> None:
        """Write ``golden.json``, which any language reads."""
        examples = [{"ids": ids, "outputs": _rounded(out)} for ids, out in zip(self.ids, self.outputs, strict=True)]
        if self.answers is not None:
            examples = [one | {"answer": answer} for one, answer in zip(examples, self.answers, strict=True)]
        content = {"format": FORMAT, "max_length": self.max_length, "ends": list(self.ends), "rows": list(self.rows)}
        bundle.write_json(folder / FILE, {**content, "examples": examples})


@dataclass(frozen=True)
class Difference:
    """How far the outputs of a copy are from the golden ones.

    ``largest`` is that of a single output, in example ``example`` (from 0); ``relative`` is its share of the largest
    golden output. ``written`` is the share of the answers that are the same to the last token, for a model that writes.
    """

    largest: float
    relative: float
    example: int
    written: float | None = None


DAY = datetime(2026, 1, 1)
"""Today, for chat templates that write the date: they must render tomorrow what they do now."""


def make(model: Any, task: Task, tokenizer: Any, limit: int) -> Golden:
    """Choose golden rows and find what a transformers model gives for them, each alone, in float32.

    Args:
        model: on any device.
        task: what it was tuned for.
        tokenizer: its tokenizer.
        limit: the most tokens that it takes.

    Raises:
        DataError: no golden row is short enough for the model.
        TrainingError: an output is not a finite number.
    """
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = (_written if task.writes() else _computed)(model, task, tokenizer, min(LENGTH, limit))
    finally:
        model.train(was_training)
    for out in found.outputs:
        finite(out)
    if not found.outputs:
        raise DataError(f"a model of at most {limit} tokens reads no golden row", hint="one that takes longer texts")
    return found


def _computed(model: Any, task: Task, tokenizer: Any, length: int) -> Golden:
    from .architectures._plain import supervised, transformers_outputs
    from .tasks._losses import token_scores

    rows, outputs = task.golden(), []
    encoded = _encoded(task, tokenizer, rows, length)
    for batch in _alone(encoded):
        out = transformers_outputs(model, batch, tokenizer.pad_token_id or 0, task.output)
        if task.output == "vocabulary":
            device = next(model.parameters()).device
            out = token_scores(out, batch.target_tensor(device)[supervised(batch, device)], task.likeliest)
        outputs.append(out.float().cpu().numpy())  # type: ignore[union-attr]
    return Golden(rows, length, tokens_of(encoded), outputs)


def _written(model: Any, task: Task, tokenizer: Any, length: int) -> Golden:
    from .generation.generator import ends_of

    author, how = author_of(model), task.generation(tokenizer)
    first, start = how.get("first_token"), how.get("start_token")
    ends = sorted(ends_of(model, tokenizer))
    length -= WRITTEN
    rows = [row for row in task.golden() if len(_prompt(task, row, tokenizer, length)) <= length]
    prompts = [_prompt(task, row, tokenizer, length) for row in rows]
    found = [author.written([prompt], WRITTEN, ends, first=first, start=start)[0] for prompt in prompts]
    outputs, answers = [one.scores for one in found], [one.tokens for one in found]
    return Golden(rows, length, [[prompt] for prompt in prompts], outputs, answers, tuple(ends))


def author_of(model: Any) -> Writing:
    """Return what writes with a transformers model, by transformers' own forward in float32."""
    import torch

    from .decoders._plain import plain
    from .engines._writing import Stepping, Writing

    return Writing(Stepping(plain(model, torch.float32)))


def read(folder: Path) -> Golden | None:
    """Read the golden rows of a folder; None if it has none.

    Raises:
        BundleError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise BundleError(f"{path} has format {content['format']}", hint="pip install --upgrade llmasos")
        examples = content["examples"]
        outputs = [np.asarray(one["outputs"], dtype=np.float32) for one in examples]
        answers = [one["answer"] for one in examples] if all("answer" in one for one in examples) else None
        if answers is not None:  # one that ends at once has no outputs, and JSON forgets their shape
            outputs = [one.reshape(-1, 2) for one in outputs]
        return Golden(
            content["rows"], int(content["max_length"]), [one["ids"] for one in examples], outputs, answers,
            tuple(content["ends"]),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path} is damaged: {error!r}", hint="copy or export the model again") from error


def compare(golden: Golden, engine: Engine | Author, task: Task, tokenizer: Any) -> Difference:
    """Run the golden rows, each alone, and compare.

    Args:
        golden: the rows.
        engine: an ``Author`` where the model writes.
        task, tokenizer: the model's.

    Raises:
        ParityError: the tokenizer makes other tokens of a row, or an output has another shape or is not finite.
    """
    written = None
    if golden.answers is None:
        encoded = _encoded(task, tokenizer, golden.rows, golden.max_length)
        ids, numbers = tokens_of(encoded), encoded.rows.tolist()
    else:
        ids = [[_prompt(task, row, tokenizer, golden.max_length)] for row in golden.rows]
        numbers = list(range(len(ids)))
    _check_tokens(golden, ids, numbers)
    if golden.answers is None:
        found = [cast("Engine", engine).outputs(batch) for batch in _alone(encoded)]
    else:
        author, how = cast("Author", engine), task.generation(tokenizer)
        first, start = how.get("first_token"), how.get("start_token")
        found, alike = [], 0
        for (prompt,), answer in zip(golden.ids, golden.answers, strict=True):
            found += author.forced([prompt], [answer], start=start)
            alike += author.greedy([prompt], WRITTEN, golden.ends, first=first, start=start) == [answer]
        written = alike / max(1, len(golden.answers))
    worst = Difference(0.0, 0.0, 0, written)
    for number, (here, wanted) in enumerate(zip(found, golden.outputs, strict=True)):
        if here.shape != wanted.shape:
            raise ParityError(
                f"for golden row {numbers[number] + 1} the outputs have shape {here.shape}, not {wanted.shape}",
                hint="this is another model, or another task's head",
            )
        apart = difference(task, here, wanted)
        if not apart <= worst.largest:  # also where it is not a number
            worst = Difference(apart, apart / max(golden.largest, 1e-30), number, written)
    return worst


def examples_of(golden: Golden, task: Task, tokenizer: Any) -> list[list[int]]:
    """Return, for each row, the places of its examples; a long row may have several, or none."""
    numbers = _encoded(task, tokenizer, golden.rows, golden.max_length).rows.tolist()
    return [[at for at, number in enumerate(numbers) if number == row] for row in range(len(golden.rows))]


def tokens_of(encoded: Encoded) -> list[list[list[int]]]:
    """Return the tokens of each example, as ``Golden.ids`` has them."""
    return [_tokens(batch) for batch in _alone(encoded)]


def run_together(golden: Golden, engine: Engine, task: Task, tokenizer: Any) -> None:
    """Run all golden rows in one batch, so that an engine that proves itself on its first rows has several."""
    engine.outputs(_together(golden, task, tokenizer))


def apart_together(golden: Golden, engine: Engine, task: Task, tokenizer: Any) -> float:
    """Run all golden rows in one batch; return their largest difference, as a share of the largest golden output.

    An engine that computes rows side by side may be wrong only there. For outputs "row", "token" and "embedding".
    """
    batch = _together(golden, task, tokenizer)
    found = engine.outputs(batch)
    parts = np.split(found, batch.offsets[1:-1] if task.output == "token" else np.arange(1, len(found)))
    places = np.arange(len(parts)) if batch.places is None else batch.places
    each = np.sort(places.reshape(len(batch.rows), -1))  # of an example alone, too, the longest sequence is the first
    found_of = {row: np.concatenate([parts[at] for at in ats]) for row, ats in zip(batch.rows, each, strict=True)}
    apart = [difference(task, found_of[row], wanted) for row, wanted in enumerate(golden.outputs)]
    return max(apart) / max(golden.largest, 1e-30)


def _together(golden: Golden, task: Task, tokenizer: Any) -> Batch:
    encoded = _encoded(task, tokenizer, golden.rows, golden.max_length)
    return gather(encoded, np.arange(len(encoded)))


def check_together(golden: Golden, batcher: Batcher, task: Task, tokenizer: Any) -> None:
    """Let an engine that batches by itself write to all golden rows side by side.

    It gives tokens and no numbers, so they must be the same ones, whatever its precision.

    Raises:
        ParityError: it writes other tokens than the model.
        BundleError: the rows are not of a model that writes.
    """
    from .engines._writing import written_together

    if golden.answers is None:
        raise BundleError(f"the golden rows of this {task.tag} model are not written to", hint="export the model again")
    ids = [[_prompt(task, row, tokenizer, golden.max_length)] for row in golden.rows]
    _check_tokens(golden, ids, list(range(len(ids))))
    found = written_together(batcher, [prompt for (prompt,) in ids], WRITTEN, golden.ends)
    wrong = [number for number, both in enumerate(zip(found, golden.answers, strict=True)) if both[0] != both[1]]
    if wrong:
        raise ParityError(
            f"{len(wrong)} of {len(found)} golden answers are other tokens by {batcher.how}; the first, of row "
            f"{wrong[0] + 1}: {found[wrong[0]]}, not {golden.answers[wrong[0]]}",
            hint="--precision float32, or --engine torch",
        )


def _check_tokens(golden: Golden, ids: list[list[list[int]]], numbers: list[int]) -> None:
    """Raise where the tokenizer, or the chat template, makes other tokens of the rows than it did."""
    if len(ids) != len(golden.ids):
        raise ParityError(
            f"the golden rows make {len(ids)} examples here, and made {len(golden.ids)}",
            hint="the tokenizer or the task's settings are not those of the model",
        )
    for here, wanted, number in zip(ids, golden.ids, numbers, strict=True):
        if here != wanted:
            raise ParityError(
                f"golden row {number + 1} becomes other tokens than it did: {here[0][:12]}, not {wanted[0][:12]}",
                hint="take the tokenizer files and the chat template of the model itself",
            )


def batches(golden: Golden, task: Task, tokenizer: Any) -> list[Batch]:
    """Return the golden rows, each alone, as an engine takes them."""
    return list(_alone(_encoded(task, tokenizer, golden.rows, golden.max_length)))


def difference(task: Task, found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the largest difference of an output; infinite where one is not finite.

    Of scored tokens only their log probability is compared: which token is the likeliest follows from it.
    """
    if task.output == "vocabulary":
        found, wanted = found[..., :1], wanted[..., :1]
    apart = np.abs(found.astype(np.float64) - wanted)
    return float(apart.max(initial=0.0)) if np.isfinite(apart).all() else float("inf")


def _encoded(task: Task, tokenizer: Any, rows: Sequence[Row], length: int) -> Encoded:
    """Encode rows; where tokens are scored, with the targets that say which."""
    return flattened(task.encode(rows, tokenizer, length, labelled=task.output == "vocabulary"), task.group)


def _prompt(task: Task, row: Row, tokenizer: Any, length: int) -> list[int]:
    """Return what a model reads to answer a row; cut where the task can cut it."""
    from .tasks._chat_template import dated

    with dated(DAY):
        return task.prompt(row, tokenizer, length) if task.cuts_prompts else task.prompt(row, tokenizer)


def _alone(encoded: Encoded) -> Iterator[Batch]:
    return (gather(encoded, np.asarray([i])) for i in range(len(encoded)))


def _tokens(batch: Batch) -> list[list[int]]:
    return [part.tolist() for part in np.split(batch.ids, batch.offsets[1:-1])]


def _rounded(values: NDArray[np.float32]) -> Any:
    """Return nested lists of the shortest numbers that are the same float32."""
    return [_rounded(one) for one in values] if values.ndim > 1 else [float(str(one)) for one in values]
