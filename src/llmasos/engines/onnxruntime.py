"""ONNX Runtime: exported graphs on a processor, with numpy alone beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core import hardware
from ..core.errors import MissingExtraError
from ._graph import Arrays, GraphEngine, GraphTranslator, GraphWriter, extra, unreadable


class OnnxRuntimeEngine(GraphEngine):
    """Run an ONNX graph; see ``GraphEngine``."""

    def _open(self, folder: Path, artifact: Mapping[str, Any], threads: int | None) -> Sequence[str]:
        self._session, self.how = _session(folder, artifact, threads)
        self._outputs = [item.name for item in self._session.get_outputs()]
        return [item.name for item in self._session.get_inputs()]

    def _run(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


class OnnxRuntimeWriter(GraphWriter):
    """Write with an ONNX graph; see ``GraphWriter``. Keys and values stay where ONNX Runtime has put them."""

    joins = True

    def _open(self, folder: Path, artifact: Mapping[str, Any], threads: int | None) -> None:
        self._session, self.how = _session(folder, artifact, threads)
        self._outputs = [item.name for item in self._session.get_outputs()]
        inputs = self._session.get_inputs()
        self._names = [item.name for item in inputs]
        # (rows, heads, tokens, width) of those that come in again: what is no number is not settled
        self._shapes = {item.name: item.shape for item in inputs if item.name.startswith("past_key_values")}
        self._types = {item.name: _TYPES[item.type] for item in inputs if item.name in self._shapes}
        self._kept: dict[str, Any] = {}

    def _forget(self, rows: int) -> None:
        empty = {name: (rows, shape[1], 0, shape[3]) for name, shape in self._shapes.items()}
        self._kept = {name: _value(np.zeros(shape, dtype=self._types[name])) for name, shape in empty.items()}

    def _forward(self, inputs: Arrays) -> NDArray[np.float32]:
        given = {name: _value(value) for name, value in inputs.items() if name in self._names}
        found = dict(
            zip(self._outputs, self._session.run_with_ort_values(self._outputs, given | self._kept), strict=True)
        )
        self._kept = {name: found.get(_given(name), before) for name, before in self._kept.items()}
        return np.asarray(found["logits"].numpy())

    def _past(self) -> Arrays:
        return {name: value.numpy() for name, value in self._kept.items()}

    def _go_on(self, past: Arrays) -> None:
        self._kept = {name: _value(value) for name, value in past.items()}

    def _pick(self, rows: NDArray[np.int64]) -> None:
        self._go_on({name: value[rows] for name, value in self._past().items()})


class OnnxRuntimeTranslator(GraphTranslator, OnnxRuntimeWriter):
    """Write with two ONNX graphs; see ``GraphTranslator``."""

    def _open(self, folder: Path, artifact: Mapping[str, Any], threads: int | None) -> None:
        reads, writes = (name for name in artifact["files"] if name.endswith(".onnx"))
        self._encoder, _ = _session(folder, {**artifact, "files": [reads]}, threads)
        super()._open(folder, {**artifact, "files": [writes]}, threads)

    def _encode(self, inputs: Arrays) -> None:
        self._forget(len(inputs["input_ids"]))
        names = {_given(name): name for name in self._kept}
        asked = [item.name for item in self._encoder.get_outputs()]
        given = {name: _value(value) for name, value in inputs.items()}
        found = zip(asked, self._encoder.run_with_ort_values(asked, given), strict=True)
        self._kept |= {names[name]: value for name, value in found}


def _given(name: str) -> str:
    """Return what a graph calls keys or values that it gives back, by what it takes them as."""
    return name.replace("past_key_values", "present")


_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def _value(array: NDArray[Any]) -> Any:
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


DISABLED = ["CommonSubexpressionElimination"]
"""What is quantized apart for each product, that it may be one of integers (exporters/_onnx.py), shall stay apart."""


def _session(folder: Path, artifact: Mapping[str, Any], threads: int | None) -> tuple[Any, str]:
    """Open the graph; return it, and in words what runs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("an ONNX model", install=extra("onnx")) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = hardware.threads(threads)
    options.log_severity_level = 3
    path = str(folder / artifact["files"][0])
    try:
        session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"], disabled_optimizers=DISABLED)
    except Exception as error:  # its own classes have no common base
        raise unreadable(folder, "ONNX Runtime", error) from error
    return session, f"{artifact['precision']}, ONNX Runtime {onnxruntime.__version__}"


def opened(folder: Path, artifact: Mapping[str, Any], **options: Any) -> OnnxRuntimeEngine | OnnxRuntimeWriter:
    """Open an artifact: one that answers, or one that writes, with an encoder or without."""
    if not artifact.get("writes"):
        return OnnxRuntimeEngine(folder, artifact, **options)
    return (OnnxRuntimeTranslator if "start" in artifact else OnnxRuntimeWriter)(folder, artifact, **options)


PLUGIN = opened
