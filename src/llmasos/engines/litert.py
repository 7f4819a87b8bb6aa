"""LiteRT: ``.tflite`` files on a processor, with numpy alone beside it.

Rows are computed one after the other, each padded to the next length that the file has a signature for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core import hardware
from ..core.errors import BundleError, MissingExtraError, UsageError
from ._graph import Arrays, GraphEngine, extra, unreadable

_PREFIX = "tokens_"


class LiteRtEngine(GraphEngine):
    """Run a LiteRT model; see ``GraphEngine``."""

    def _open(self, folder: Path, artifact: Mapping[str, Any], threads: int | None) -> Sequence[str]:
        try:
            import ai_edge_litert
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise MissingExtraError("a LiteRT model", install=extra("litert")) from error
        path = str(folder / artifact["files"][0])
        try:
            self._model = Interpreter(model_path=path, num_threads=hardware.threads(threads))
            found = self._model.get_signature_list()
        except (ValueError, RuntimeError) as error:
            raise unreadable(folder, "LiteRT", error) from error
        lengths = [name.removeprefix(_PREFIX) for name in found if name.startswith(_PREFIX)]
        self._lengths = sorted(int(length) for length in lengths if length.isdigit())
        if not self._lengths:
            raise BundleError(f"{path} has no signature {_PREFIX}N", hint="a file that this project exported")
        self._runners: dict[int, Any] = {}
        self.how = f"{artifact['precision']}, LiteRT {ai_edge_litert.__version__}"
        return list(found[f"{_PREFIX}{self._lengths[0]}"]["inputs"])

    def _run(self, inputs: Arrays) -> Arrays:
        lengths = inputs["attention_mask"].sum(axis=1)
        rows = [
            self._alone({name: value[row, :length] for name, value in inputs.items()})
            for row, length in enumerate(lengths)
        ]
        return {name: self._joined([row[name] for row in rows], lengths) for name in rows[0]}

    def _alone(self, inputs: Arrays) -> Arrays:
        """Compute one row, padded."""
        count = len(inputs["attention_mask"])
        length = next((one for one in self._lengths if one >= count), None)
        if length is None:
            raise UsageError(
                f"a text of {count} tokens, and this model was exported for at most {self._lengths[-1]}",
                hint=f"max_length={self._lengths[-1]}, or export it with a larger --max-length",
            )
        if length not in self._runners:
            self._runners[length] = self._model.get_signature_runner(f"{_PREFIX}{length}")
        given = {}
        for name, value in inputs.items():
            given[name] = np.full((1, length), self.pad_id if name == "input_ids" else 0, dtype=np.int32)
            given[name][0, :count] = value
        return dict(self._runners[length](**given))

    def _joined(self, rows: list[NDArray[Any]], lengths: NDArray[Any]) -> NDArray[Any]:
        """Lay rows below one another: where they are along the tokens, without what was padding."""
        if self.output == "row":
            return np.concatenate(rows)
        out = np.zeros((len(rows), int(lengths.max()), *rows[0].shape[2:]), dtype=np.float32)
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            out[place, :length] = row[0, :length]
        return out


PLUGIN = LiteRtEngine
