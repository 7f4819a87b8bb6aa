"""Golden rows: a few rows with what the model gave for them, by which every copy of it is compared with it.

The rows are the task's own (``Task.golden``), so that none of a user's goes into a folder that may be given away. What
the model gives is found once, by transformers' own forward in float32, one row at a time; wherever the model runs
afterwards, in whatever format, it must make the same tokens of the rows and give the same numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .core import bundle
from .core.errors import BundleError, ParityError
from .data.batching import Batch, gather
from .data.encoding import Encoded, flattened
from .tasks.base import Row, Task

if TYPE_CHECKING:
    from .engines.base import Engine

FILE = "golden.json"
FORMAT = 1
LENGTH = 128
"""Most tokens of a golden row."""


@dataclass(frozen=True)
class Golden:
    """Golden rows.

    Args:
        rows: the rows, by the task's fields.
        max_length: what they are cut to.
        ids: of each example, the tokens of its sequences, longest first.
        outputs: of each example, what the model gives (``Task.output``), in the same order.
    """

    rows: Sequence[Row]
    max_length: int
    ids: list[list[list[int]]]
    outputs: list[NDArray[np.float32]]

    @property
    def largest(self) -> float:
        """The largest output: what differences compare with."""
        return max((float(np.abs(one).max(initial=0.0)) for one in self.outputs), default=0.0)

    def write(self, folder: Path) -> None:
        """Write ``golden.json``, which any language reads."""
        examples = [{"ids": ids, "outputs": _rounded(out)} for ids, out in zip(self.ids, self.outputs, strict=True)]
        content = {"format": FORMAT, "max_length": self.max_length, "rows": list(self.rows), "examples": examples}
        bundle.write_json(folder / FILE, content)


@dataclass(frozen=True)
class Difference:
    """How far the outputs of a copy are from the golden ones.

    ``largest`` is that of a single output, in example ``example`` (from 0); ``relative`` is its share of the largest
    golden output.
    """

    largest: float
    relative: float
    example: int


def make(model: Any, task: Task, tokenizer: Any, limit: int) -> Golden:
    """Choose golden rows and find what a transformers model gives for them, each alone, in float32.

    Args:
        model: on any device.
        task: what it was tuned for.
        tokenizer: its tokenizer.
        limit: the most tokens that it takes.
    """
    import torch

    from .architectures._plain import supervised, transformers_outputs
    from .tasks._losses import token_scores

    rows, length = task.golden(), min(LENGTH, limit)
    encoded, was_training = _encoded(task, tokenizer, rows, length), model.training
    model.eval()
    outputs = []
    with torch.no_grad():
        for batch in _alone(encoded):
            out = transformers_outputs(model, batch, tokenizer.pad_token_id or 0, task.output)
            if task.output == "vocabulary":
                device = next(model.parameters()).device
                out = token_scores(out, batch.target_tensor(device)[supervised(batch, device)], task.likeliest)
            outputs.append(out.float().cpu().numpy())  # type: ignore[union-attr]
    model.train(was_training)
    return Golden(rows, length, [_tokens(batch) for batch in _alone(encoded)], outputs)


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
        return Golden(content["rows"], int(content["max_length"]), [one["ids"] for one in examples], outputs)
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path} is damaged: {error!r}", hint="copy or export the model again") from error


def compare(golden: Golden, engine: Engine, task: Task, tokenizer: Any) -> Difference:
    """Run the golden rows, each alone, and compare.

    Raises:
        ParityError: the tokenizer makes other tokens of a row, or an output has another shape or is not finite.
    """
    encoded = _encoded(task, tokenizer, golden.rows, golden.max_length)
    if len(encoded) != len(golden.outputs):
        raise ParityError(
            f"the golden rows make {len(encoded)} examples here, and made {len(golden.outputs)}",
            hint="the tokenizer or the task's settings are not those of the model",
        )
    worst = Difference(0.0, 0.0, 0)
    for number, batch in enumerate(_alone(encoded)):
        if _tokens(batch) != golden.ids[number]:
            raise ParityError(
                f"the tokenizer makes other tokens of golden row {int(encoded.rows[number]) + 1}: "
                f"{_tokens(batch)[0][:12]} where {golden.ids[number][0][:12]} were made",
                hint="take the tokenizer files of the model itself",
            )
        wanted, found = golden.outputs[number], engine.outputs(batch)
        if found.shape != wanted.shape:
            raise ParityError(
                f"for golden row {int(encoded.rows[number]) + 1} the outputs have shape {found.shape}, not "
                f"{wanted.shape}", hint="this is another model, or another task's head",
            )  # fmt: skip
        apart = difference(task, found, wanted)
        if not apart <= worst.largest:  # also where it is not a number
            worst = Difference(apart, apart / max(golden.largest, 1e-30), number)
    return worst


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


def _alone(encoded: Encoded) -> Iterator[Batch]:
    return (gather(encoded, np.asarray([i])) for i in range(len(encoded)))


def _tokens(batch: Batch) -> list[list[int]]:
    return [part.tolist() for part in np.split(batch.ids, batch.offsets[1:-1])]


def _rounded(values: NDArray[np.float32]) -> Any:
    """Return nested lists of the shortest numbers that are the same float32."""
    return [_rounded(one) for one in values] if values.ndim > 1 else [float(str(one)) for one in values]
