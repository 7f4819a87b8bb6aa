"""ExecuTorch: programs for phones, run here by ExecuTorch's own runtime for Python.

That runtime is the C++ of the phones, with the same XNNPACK; but its Python side takes and gives torch tensors, so
torch is imported for that, and for nothing else. One row at a time: a program reads a row of any length, and none
beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core import hardware
from ..core.errors import MissingExtraError, UsageError
from ..data.batching import Batch
from ._graph import extra, scores, unreadable
from ._writing import Writing, score_targets


class ExecuTorchEngine:
    """Run a program: an ``Engine``, and a ``Stepper`` where its model writes; see ``base.py``.

    Args:
        folder: the artifact.
        artifact: what its manifest says of it; ``files``, ``precision``, ``writes``, ``longest``, ``inputs`` and
            ``chunk`` are read.
        pad_id: not needed here.
        output: what the task reads (``Task.output``).
        likeliest: for output "vocabulary", how many of the likeliest tokens to give of each place.
        threads: processor threads; one a core if None.

    Attributes:
        bare_bytes: the most memory that the process had held before it opened the program.

    Raises:
        MissingExtraError: ExecuTorch is not installed.
        BundleError: it cannot read the program.
    """

    at_once = 1

    def __init__(
        self, folder: Path, artifact: Mapping[str, Any], *, pad_id: int = 0, output: str = "vocabulary",
        likeliest: int = 0, threads: int | None = None,
    ) -> None:  # fmt: skip
        del pad_id
        try:
            import torch
            from executorch.extension.pybindings import portable_lib
        except ImportError as error:
            raise MissingExtraError("an ExecuTorch model", install=extra("executorch")) from error
        self._tensor, self._library = torch.from_numpy, portable_lib
        self._output, self._likeliest, self._writes = output, likeliest, bool(artifact.get("writes"))
        self._longest, self._chunk = int(artifact["longest"]), int(artifact.get("chunk", 1))
        self._inputs: list[str] = list(artifact.get("inputs", ()))
        self._folder, self._path = folder, folder / artifact["files"][0]
        self.bare_bytes = hardware.peak_resident_memory()
        portable_lib._unsafe_reset_threadpool(hardware.threads(threads))
        self._spare, self._rows = [self._program()], list[_Row]()
        self.how = f"{artifact['precision']}, ExecuTorch {_version()}"

    def _program(self) -> _Program:
        return _Program(self._library, self._tensor, self._folder, self._path)

    # -- outputs --------------------------------------------------------------------------------------

    def together(self, batches: Sequence[Batch]) -> list[NDArray[np.float32]]:
        """Compute one batch after the other."""
        return [self.outputs(batch) for batch in batches]

    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """Return outputs as ``engines/base.py`` says."""
        if self._writes:
            return score_targets(Writing(self), batch, encodes=False)
        (program,), cuts = self._spare, batch.offsets[1:-1]
        types = np.zeros_like(batch.ids) if batch.types is None else batch.types
        parts: dict[str, list[NDArray[Any]]] = {
            "input_ids": np.split(batch.ids, cuts),
            "token_type_ids": np.split(types, cuts),
        }
        rows = [[parts[name][i] for name in self._inputs] for i in range(len(batch.lengths))]
        found = [program.run([one[None] for one in row]) for row in rows]
        if self._output in ("row", "embedding"):
            return np.concatenate(found)
        logits = np.concatenate([one[0] for one in found])
        return logits if self._output == "token" else scores(logits, batch, self._likeliest)

    # -- writing --------------------------------------------------------------------------------------

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> NDArray[np.float32]:
        """Read prompts; see ``Stepper``."""
        del room
        self._spare += [row.program for row in self._rows]
        self._rows = [self._row() for _ in prompts]
        return np.stack([row.read(prompt, self._chunk) for row, prompt in zip(self._rows, prompts, strict=True)])

    def step(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token to each row; see ``Stepper``."""
        return np.stack([row.read([int(token)], 1) for row, token in zip(self._rows, ids, strict=True)])

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows; see ``Stepper``. What a row keeps cannot be copied: a second one reads it again."""
        kept: dict[int, _Row] = {}
        chosen: list[_Row] = []
        self._spare += [row.program for number, row in enumerate(self._rows) if number not in set(rows.tolist())]
        for number in rows.tolist():
            row = self._rows[number]
            if number in kept:
                row = self._row()
                row.read(self._rows[number].tokens, self._chunk)
            chosen.append(kept.setdefault(number, row) if number not in kept else row)
        self._rows = chosen

    def _row(self) -> _Row:
        return _Row(self._spare.pop() if self._spare else self._program(), self._longest)


class _Row:
    """A text that is being written, in a program with keys and values of its own."""

    def __init__(self, program: _Program, longest: int) -> None:
        self.program, self.tokens, self._longest = program, list[int](), longest

    def read(self, ids: Sequence[int], chunk: int) -> NDArray[np.float32]:
        """Append tokens; return the logits after the last one, (vocabulary,)."""
        if len(self.tokens) + len(ids) > self._longest:
            raise UsageError(
                f"this program keeps {self._longest} tokens, and {len(self.tokens) + len(ids)} are asked for",
                hint="a shorter text, or a smaller max_new_tokens",
            )
        for start in range(0, len(ids), chunk):
            part = np.asarray(ids[start : start + chunk], dtype=np.int64)
            logits = self.program.run([part[None], len(self.tokens) + np.arange(len(part))])
            self.tokens += part.tolist()
        return np.asarray(logits[0, -1])


class _Program:
    """An opened file. Two of them share nothing, so that each keeps keys and values of its own."""

    def __init__(self, library: Any, tensor: Any, folder: Path, path: Path) -> None:
        self._tensor = tensor
        try:
            self._file = library._load_program(str(path))  # is read as long as the method lives
            self._method = self._file.load_method("forward")
        except RuntimeError as error:
            raise unreadable(folder, "ExecuTorch", error) from error

    def run(self, inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        given = [self._tensor(np.ascontiguousarray(one, dtype=np.int64)) for one in inputs]
        return self._method(given)[0].numpy()  # type: ignore[no-any-return]


def _version() -> str:
    from importlib import metadata

    return metadata.version("executorch")


PLUGIN = ExecuTorchEngine
