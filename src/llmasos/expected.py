"""What a server must answer to a model's golden rows, as its clients see it.

Golden outputs are numbers; here they go through the one path of predictions, and what comes out is compared with what a
server has said in JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import golden
from .certificate import TOLERANCES
from .core import bundle
from .core.config import GenerateConfig, PredictConfig
from .core.errors import BundleError, DeploymentError
from .data.encoding import flattened

if TYPE_CHECKING:
    from .opening import Opened


class Compared(NamedTuple):
    """How an answer is to what it must be: how far its numbers are, and whether its texts are the same."""

    apart: float
    same: bool


class Expected:
    """The golden rows of a model, and what it must answer to them.

    Args:
        folder: the model's.
        precision: the number format in which the server computes.

    Raises:
        BundleError: it has none.
    """

    def __init__(self, folder: Path, *, precision: str = "float32") -> None:
        kept, manifest = golden.read(folder), bundle.read_manifest(folder)
        if kept is None or manifest is None or manifest.get("task") is None:
            raise BundleError(f"{folder} has no golden rows to compare with",
                              hint="finetune, save or export it with this version")  # fmt: skip
        from .loading import load_tokenizer

        task, tokenizer = bundle.saved_task(manifest["task"], folder), load_tokenizer(folder)
        self.precision = precision
        self.options: dict[str, Any] = {}
        self.tokens = sum(len(ids) for sequences in kept.ids for ids in sequences) / max(1, len(kept.rows))
        if kept.answers is None:
            found = _answers(kept, task, tokenizer, folder)
        else:
            self.options = {"max_new_tokens": golden.WRITTEN}
            found = _written(kept, task, folder, precision)
        if not found:
            raise BundleError(f"the golden rows of {folder} are all longer than the model takes",
                              hint="a model that takes longer texts")  # fmt: skip
        self.rows, self.answers = [dict(row) for row, _ in found], [answer for _, answer in found]
        self._tolerance = max(0.01, TOLERANCES[precision].outputs)

    def check(self, number: int, found: Any) -> Compared:
        """Compare an answer.

        Texts must be the same where the server computes in float32; in a coarser format one that lies between two may
        become the other.

        Raises:
            DeploymentError: it is another one.
        """
        try:
            return self._compared(self.answers[number], found, "it")
        except ValueError as error:
            raise DeploymentError(f"golden row {number + 1} is answered otherwise: {error}",
                                  hint="llmasos verify compares the model itself") from error  # fmt: skip

    def _compared(self, wanted: Any, found: Any, where: str) -> Compared:
        if isinstance(wanted, Mapping) and isinstance(found, Mapping):
            parts = [self._compared(value, found.get(name), name) for name, value in wanted.items()]
        elif isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
            parts = [self._compared(one, other, where) for one, other in zip(wanted, found, strict=True)]
        elif isinstance(wanted, float) and isinstance(found, int | float):
            apart = abs(wanted - found) / max(1.0, abs(wanted))
            if not apart <= self._tolerance:
                raise ValueError(f"{where} is {found:.6g}, not {wanted:.6g}")
            return Compared(apart, True)
        else:
            if wanted != found and (self.precision == "float32" or not isinstance(found, type(wanted))):
                raise ValueError(f"{where} is {found!r:.80}, not {wanted!r:.80}")
            return Compared(0.0, wanted == found)
        return Compared(max((part.apart for part in parts), default=0.0), all(part.same for part in parts))


class _Kept:
    """An engine that gives the golden outputs of the sequences that it is asked for."""

    how, at_once = "golden rows", 1

    def __init__(self, kept: golden.Golden, output: str) -> None:
        self._of: dict[tuple[int, ...], NDArray[np.float32]] = {}
        self._joined = output == "token"
        for sequences, found in zip(kept.ids, kept.outputs, strict=True):
            ends = np.cumsum([len(ids) for ids in sequences])[:-1]
            parts = np.split(found, ends) if self._joined else list(found)
            self._of |= {tuple(ids): part for ids, part in zip(sequences, parts, strict=True)}

    def outputs(self, batch: Any) -> NDArray[np.float32]:
        """Return the outputs of a batch.

        Raises:
            BundleError: the tokenizer makes other tokens of a golden row than it did.
        """
        try:
            found = [self._of[tuple(part.tolist())] for part in np.split(batch.ids, batch.offsets[1:-1])]
        except KeyError as error:
            raise BundleError("a golden row becomes other tokens than it did",
                              hint="take the tokenizer files of the model itself") from error  # fmt: skip
        return np.concatenate(found) if self._joined else np.stack(found)

    def together(self, batches: Sequence[Any]) -> Sequence[NDArray[np.float32]]:
        """Return the outputs of batches."""
        return [self.outputs(batch) for batch in batches]


def _answers(kept: golden.Golden, task: Any, tokenizer: Any, folder: Path) -> list[tuple[Any, Any]]:
    """Return the golden rows that are read whole and at once, each with the model's answer, by the path of predictions.

    The golden outputs of single tokens are of those that were left out of a text, and no answer: there the model itself
    gives it.
    """
    from .prediction import Cut, predict

    engine: Any = _Kept(kept, task.output) if task.output != "vocabulary" else _model(folder)._engine(PredictConfig())
    found = []
    for row in kept.rows:
        cut = Cut()
        how: dict[str, Any] = {"max_length": kept.max_length, "batch_size": 1, "cut": cut}
        (answer,) = predict(engine, task, tokenizer, [row], **how)
        windows = flattened(task.encode([row], tokenizer, kept.max_length, labelled=False), task.group)
        if not cut.rows and len(windows) == 1:  # the server may have longer ones
            found.append((row, _plain(answer)))
    return found


def _model(folder: Path) -> Opened:
    from .opening import Opened
    from .sources.base import Located

    return Opened(Located(folder, str(folder), None, ""))


def _written(kept: golden.Golden, task: Any, folder: Path, precision: str) -> list[tuple[Any, Any]]:
    """Return the golden rows that are read whole, each with the text that the model itself writes to it here.

    Golden answers are the likeliest tokens, and a task may write with beams; the server compares those as it opens.
    """
    model, how = _model(folder), dict[str, Any](max_new_tokens=golden.WRITTEN)
    if bundle.artifact_of(bundle.read_manifest(folder)) is None:
        how["precision"] = precision
    rows = [row for row, ids in zip(kept.rows, kept.ids, strict=True)
            if len(task.prompt(row, model.tokenizer)) == len(ids[0])]  # fmt: skip
    if task.generates:
        answers = model._written(rows, how)
    else:  # the server has it write on from a prompt
        rows = [{"prompt": row[task.fields[0].name]} for row in rows]
        config = GenerateConfig.of(how)
        generator = model._generator(config)
        answers = iter(generator.answers([generator.tokens(row["prompt"]) for row in rows], config))
    return [(row, {"text": answer.text}) for row, answer in zip(rows, answers, strict=True)]


def _plain(answer: Any) -> Any:
    """Return an answer as JSON types, as a client sees it."""
    if hasattr(answer, "as_dict"):
        return answer.as_dict()
    return answer.tolist() if hasattr(answer, "tolist") else answer
