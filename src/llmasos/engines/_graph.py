"""What engines of exported graphs share: padded batches in under transformers' names, arrays out, no torch anywhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import BundleError
from ..data.batching import Batch, pad, rectangle
from ..tasks.base import IGNORED
from ._writing import Writing, score_targets

Arrays = Mapping[str, NDArray[Any]]


class GraphEngine(ABC):
    """Run an exported graph on batches; see ``engines/base.py``.

    Args:
        folder: the artifact.
        artifact: what its manifest says of it; ``files`` and ``precision`` are read.
        pad_id: id for padding.
        output: what the task reads (``Task.output``).
        likeliest: for output "vocabulary", how many of the likeliest tokens to give of each place.
        threads: processor threads; one a core if None.

    Raises:
        MissingExtraError: the runtime is not installed.
        BundleError: it cannot read the graph.
    """

    at_once = 1

    def __init__(
        self, folder: Path, artifact: Mapping[str, Any], *, pad_id: int, output: str, likeliest: int = 0,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        self.pad_id, self.output, self.likeliest = pad_id, output, likeliest
        self.how = f"{artifact['precision']}, {type(self).__name__}"
        self.names = self._open(folder, artifact, threads)

    @abstractmethod
    def _open(self, folder: Path, artifact: Mapping[str, Any], threads: int | None) -> Sequence[str]:
        """Load the graph; return the names of its inputs."""

    @abstractmethod
    def _run(self, inputs: Arrays) -> Arrays:
        """Compute; return the outputs under transformers' names."""

    def together(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Compute one batch after the other."""
        return [self.outputs(batch) for batch in batches]

    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """Return outputs as ``engines/base.py`` says."""
        inputs = pad(batch, self.pad_id)
        if "token_type_ids" in self.names and "token_type_ids" not in inputs:
            inputs["token_type_ids"] = np.zeros_like(inputs["input_ids"])
        found = self._run({name: inputs[name] for name in self.names})
        return np.asarray(self._read(found, batch, inputs["attention_mask"].astype(bool)), dtype=np.float32)

    def _read(self, found: Arrays, batch: Batch, inside: NDArray[np.bool_]) -> NDArray[Any]:
        if self.output == "embedding":
            mask = inside[..., None].astype(np.float32)
            return np.asarray((found["last_hidden_state"] * mask).sum(1) / mask.sum(1))
        if self.output == "row":
            return found["logits"]
        logits = (
            np.stack([found["start_logits"], found["end_logits"]], axis=-1)
            if "start_logits" in found
            else found["logits"]
        )[inside]
        return logits if self.output == "token" else scores(logits, batch, self.likeliest)


def scores(logits: NDArray[Any], batch: Batch, likeliest: int) -> NDArray[np.float32]:
    """Return what ``tasks/_losses.py``'s ``token_scores`` does, of logits (tokens, vocabulary), without torch."""
    assert batch.targets is not None
    places = np.flatnonzero(batch.targets != IGNORED)
    out = np.zeros((len(places), 2 + 2 * likeliest), dtype=np.float32)
    for line, place in zip(out, places, strict=True):  # one line of the vocabulary at a time, in double precision
        row = logits[place].astype(np.float64)
        chances = row - row.max()
        chances -= np.log(np.exp(chances).sum())
        target = int(batch.targets[place])
        line[:2] = -chances[target], chances.argmax() == target
        if likeliest:
            best = np.argsort(-chances, kind="stable")[:likeliest]
            line[2:] = [*best, *chances[best]]
    return out


def unreadable(folder: Path, runtime: str, error: Exception) -> BundleError:
    """Word the error of a runtime that cannot read an artifact."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return BundleError(f"{runtime} cannot open the model in {folder}: {reason[:300]}", hint="export it again")


class GraphWriter(ABC):
    """Write with an exported graph that keeps keys and values from step to step: a ``Stepper``, see ``base.py``.

    Prompts of unequal length are aligned at their ends, as ``decoders/_plain.py`` has them: what lies before is hidden
    by the mask and not counted in the positions. Arguments are those of ``GraphEngine``. It is an ``Engine`` too, which
    scores tokens by writing them.
    """

    at_once = 1
    joins = False
    """Whether prompts can ``join`` those under way: where keys and values can be taken out and put back."""

    def __init__(
        self, folder: Path, artifact: Mapping[str, Any], *, pad_id: int, output: str, likeliest: int = 0,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        del pad_id, output, likeliest
        self.how = f"{artifact['precision']}, {type(self).__name__}"
        self._mask = np.zeros((0, 0), dtype=np.int64)
        self._open(folder, artifact, threads)

    @abstractmethod
    def _open(self, folder: Path, artifact: Mapping[str, Any], threads: int | None) -> None:
        """Load the graph."""

    @abstractmethod
    def _forget(self, rows: int) -> None:
        """Begin anew with so many rows."""

    @abstractmethod
    def _forward(self, inputs: Arrays) -> NDArray[np.float32]:
        """Read ``input_ids``, (rows, tokens), under ``attention_mask`` at ``position_ids``, after what was read before.

        Returns logits, (rows, tokens, vocabulary).
        """

    @abstractmethod
    def _pick(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows of keys and values."""

    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """Score the targets; see ``Engine``."""
        return score_targets(Writing(self), batch, encodes=False)

    def together(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Score one batch after the other."""
        return [self.outputs(batch) for batch in batches]

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> NDArray[np.float32]:
        """Read prompts; see ``Stepper``."""
        del room
        longest = max(map(len, prompts))
        ids = np.asarray([[*[prompt[0]] * (longest - len(prompt)), *prompt] for prompt in prompts], dtype=np.int64)
        self._mask = (np.arange(longest) >= longest - np.asarray([[len(prompt)] for prompt in prompts])).astype(
            np.int64
        )
        self._forget(len(prompts))
        return self._next(ids)

    def step(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token to each row; see ``Stepper``."""
        self._mask = np.concatenate([self._mask, np.ones((len(ids), 1), dtype=np.int64)], axis=1)
        return self._next(np.asarray(ids, dtype=np.int64)[:, None])

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows; see ``Stepper``."""
        self._mask = self._mask[rows]
        self._pick(np.asarray(rows, dtype=np.int64))

    def join(self, prompts: Sequence[Sequence[int]], room: int, rows: Sequence[int]) -> NDArray[np.float32]:
        """Read more prompts into some rows, of answers that have ended or behind the last; see ``Stepper``."""
        mask, kept, here = self._mask, self._past(), list(rows)
        logits = self.begin(prompts, room)
        count = max(len(mask), here[-1] + 1)
        mask = np.concatenate([mask, np.zeros((count - len(mask), mask.shape[1]), dtype=mask.dtype)])
        mask[here] = 0
        width = max(self._mask.shape[1], int(mask.sum(axis=1).max()))  # what no row needs any more is left behind
        self._go_on({name: _mixed(kept[name], new, here, count, width) for name, new in self._past().items()})
        lines = _mixed(mask[:, None, :, None], self._mask[:, None, :, None], here, count, width)
        self._mask = lines[:, 0, :, 0]
        return logits

    def _past(self) -> Arrays:
        """Return keys and values, (rows, heads, tokens, width)."""
        raise NotImplementedError

    def _go_on(self, past: Arrays) -> None:
        """Go on with these keys and values."""
        raise NotImplementedError

    def _next(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        places = np.maximum(self._mask.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        logits = self._forward({"input_ids": ids, "attention_mask": self._mask, "position_ids": places})
        return np.asarray(logits[:, -1], dtype=np.float32)


class GraphTranslator(GraphWriter):
    """Write with two exported graphs: one reads the prompts, once; the other writes, see ``GraphWriter``.

    Prompts of unequal length are aligned at their beginnings; what lies behind is hidden by the mask.
    """

    joins = False
    """What was written must be of one length: nothing hides what of it a row lacks."""

    def __init__(self, folder: Path, artifact: Mapping[str, Any], *, pad_id: int, **options: Any) -> None:
        super().__init__(folder, artifact, pad_id=pad_id, **options)
        self.start: int | None = None
        self._pad, self._first = pad_id, int(artifact["start"])

    @abstractmethod
    def _encode(self, inputs: Arrays) -> None:
        """Read ``input_ids`` under ``attention_mask``, both (rows, tokens), and begin anew with as many rows."""

    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """Score the targets; see ``Engine``."""
        return score_targets(Writing(self), batch, encodes=True)

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> NDArray[np.float32]:
        """Read prompts; see ``Stepper``."""
        del room
        lengths = np.asarray([len(prompt) for prompt in prompts], dtype=np.int32)
        flat = np.asarray([token for prompt in prompts for token in prompt], dtype=np.int64)
        ids, inside = rectangle(flat, lengths, self._pad)
        self._mask = inside.astype(np.int64)
        self._encode({"input_ids": ids, "attention_mask": self._mask})
        start = self._first if self.start is None else self.start
        return self.step(np.full(len(prompts), start, dtype=np.int64))

    def step(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token to each row; see ``Stepper``."""
        given = np.asarray(ids, dtype=np.int64)[:, None]
        return np.asarray(self._forward({"input_ids": given, "attention_mask": self._mask})[:, -1], dtype=np.float32)


def _mixed(old: NDArray[Any], new: NDArray[Any], here: list[int], count: int, width: int) -> NDArray[Any]:
    """Return (count, heads, width, size): old rows, and new ones in their places, all aligned at their ends."""
    out = np.zeros((count, old.shape[1], width, old.shape[3]), dtype=old.dtype)
    kept = min(width, old.shape[2])
    out[: len(old), :, width - kept :] = old[:, :, old.shape[2] - kept :]
    out[here] = 0
    out[here, :, width - new.shape[2] :] = new
    return out


def extra(name: str) -> str:
    """Return what pip is told to bring a runtime: an extra of this package, under whatever name it was built."""
    return f"'{__name__.partition('.')[0].replace('_', '-')}[{name}]'"
