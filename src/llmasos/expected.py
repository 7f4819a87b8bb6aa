"""What a server must answer to a model's golden rows, as whoever deploys it sees it: beside ``serving/expected.py``.

That one tells what is certain of the golden outputs. Where there is nothing of it, and for models that write, which may
do so with beams, the model itself answers here once, and what a server says is compared with that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import golden
from .certificate import TOLERANCES
from .core import bundle
from .core.config import GenerateConfig, PredictConfig
from .core.errors import BundleError, DeploymentError
from .serving.expected import answered

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
        task, model = bundle.saved_task(manifest["task"], folder), _model(folder)
        limit = TOLERANCES[precision].outputs
        self.options: dict[str, Any] = {}
        self.precision, self.certain = precision, precision == "float32"
        self.tokens = sum(len(ids) for sequences in kept.ids for ids in sequences) / max(1, len(kept.rows))
        self.tolerance, found = limit, list[tuple[Any, Any]]()
        if kept.answers is None:
            longest = model._max_length(PredictConfig())
            cases, tolerance = answered(task, kept, model.tokenizer, longest, limit * kept.largest)
            found = [(case.body["inputs"], case.expected) for case in cases if "truncate" not in case.body]
            self.tolerance, self.certain = (tolerance, True) if found else (limit, self.certain)
            found = found or _predicted(kept, task, model)
        else:
            self.options = {"max_new_tokens": golden.WRITTEN}
            found = _written(kept, task, model, precision)
        if not found:
            raise BundleError(f"the golden rows of {folder} are all longer than the model takes",
                              hint="a model that takes longer texts")  # fmt: skip
        self.rows = [dict(row) for row, _ in found]
        self.answers = [json.loads(json.dumps(answer)) for _, answer in found]  # labels that are numbers become names

    def check(self, number: int, found: Any) -> Compared:
        """Compare an answer.

        What is certain must be the same. Of what a model has answered here itself, texts must be the same where it
        computes in float32; in a coarser format one that lies between two may become the other.

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
            apart = abs(wanted - found)
            if not apart <= self.tolerance + 1e-6:  # a JSON number has fewer digits than a wire of tensors
                raise ValueError(f"{where} is {found:.6g}, not {wanted:.6g}")
            return Compared(apart, True)
        else:
            if wanted != found and (self.certain or not isinstance(found, type(wanted))):
                raise ValueError(f"{where} is {found!r:.80}, not {wanted!r:.80}")
            return Compared(0.0, wanted == found)
        return Compared(max((part.apart for part in parts), default=0.0), all(part.same for part in parts))


def _model(folder: Path) -> Opened:
    from .opening import Opened
    from .sources.base import Located

    return Opened(Located(folder, str(folder), None, ""))


def _predicted(kept: golden.Golden, task: Any, model: Opened) -> list[tuple[Any, Any]]:
    """Return the golden rows that are read whole, each with the model's answer."""
    from .prediction import Cut, predict

    engine, found = model._engine(PredictConfig()), []
    for row in kept.rows:
        cut = Cut()
        how: dict[str, Any] = {"max_length": kept.max_length, "batch_size": 1, "cut": cut}
        (answer,) = predict(engine, task, model.tokenizer, [row], **how)
        if not cut.rows:
            found.append((row, answer.as_dict()))
    return found


def _written(kept: golden.Golden, task: Any, model: Opened, precision: str) -> list[tuple[Any, Any]]:
    """Return the golden rows that are read whole, each with the text that the model itself writes to it here.

    Golden answers are the likeliest tokens, and a task may write with beams; the server compares those as it opens.
    """
    how: dict[str, Any] = {"max_new_tokens": golden.WRITTEN}
    if bundle.artifact_of(bundle.read_manifest(model.located.path)) is None:
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
