"""OpenVINO: exported graphs on a processor, with numpy alone beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core import hardware
from ..core.errors import MissingExtraError
from ._graph import Arrays, GraphEngine, GraphTranslator, GraphWriter, extra, unreadable

HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32", "int4": "f32"}
"""What is computed in where the graph does not say; by itself OpenVINO takes bfloat16 for float32."""


class OpenVinoEngine(GraphEngine):
    """Run an OpenVINO graph; see ``GraphEngine``."""

    def _open(self, folder: Path, artifact: Mapping[str, Any], threads: int | None) -> Sequence[str]:
        compiled, self.how = _compiled(folder, artifact, threads)
        self._request = compiled.create_infer_request()
        self._outputs = [(port, port.get_names()) for port in compiled.outputs]
        return [port.any_name for port in compiled.inputs]

    def _run(self, inputs: Arrays) -> Arrays:
        found = self._request.infer(dict(inputs), share_inputs=True)
        return {name: found[port] for port, names in self._outputs for name in names}


class OpenVinoWriter(GraphWriter):
    """Write with a stateful OpenVINO graph; see ``GraphWriter``. Keys and values are the graph's own state."""

    def _open(self, folder: Path, artifact: Mapping[str, Any], threads: int | None) -> None:
        compiled, self.how = _compiled(folder, artifact, threads)
        self._request = compiled.create_infer_request()
        self._names = {name for port in compiled.inputs for name in port.get_names()}
        self._logits = compiled.output("logits")
        self._rows = np.zeros(0, dtype=np.int32)

    def _forget(self, rows: int) -> None:
        self._request.reset_state()
        self._rows = np.arange(rows, dtype=np.int32)

    def _forward(self, inputs: Arrays) -> NDArray[np.float32]:
        given = {**inputs, "beam_idx": self._rows}
        found = self._request.infer({name: value for name, value in given.items() if name in self._names})
        self._rows = np.arange(len(inputs["input_ids"]), dtype=np.int32)
        return np.asarray(found[self._logits])

    def _pick(self, rows: NDArray[np.int64]) -> None:
        self._rows = self._rows[rows]  # taken by the graph in its next step


class OpenVinoTranslator(GraphTranslator):
    """Write with two OpenVINO graphs; see ``GraphTranslator``. Keys and values are kept here, as arrays."""

    def _open(self, folder: Path, artifact: Mapping[str, Any], threads: int | None) -> None:
        reads, writes = (name for name in artifact["files"] if name.endswith(".xml"))
        reader, self.how = _compiled(folder, {**artifact, "files": [reads]}, threads)
        writer, _ = _compiled(folder, {**artifact, "files": [writes]}, threads)
        self._reader, self._writer = reader.create_infer_request(), writer.create_infer_request()
        self._names = {port.any_name for port in writer.inputs}
        self._sizes = {  # (rows, heads, tokens, width)
            _taken(port.any_name): port.partial_shape for port in writer.outputs if port.any_name != "logits"
        }
        self._kept: dict[str, NDArray[Any]] = {}

    def _forget(self, rows: int) -> None:
        empty = {
            name: (rows, heads.get_length(), 0, width.get_length())
            for name, (_, heads, _, width) in self._sizes.items()
        }
        self._kept = {name: np.zeros(shape, dtype=np.float32) for name, shape in empty.items()}

    def _encode(self, inputs: Arrays) -> None:
        self._forget(len(inputs["input_ids"]))
        self._kept |= {
            _taken(port.any_name): np.array(value) for port, value in self._reader.infer(dict(inputs)).items()
        }

    def _forward(self, inputs: Arrays) -> NDArray[np.float32]:
        given = {name: value for name, value in {**inputs, **self._kept}.items() if name in self._names}
        found = {port.any_name: np.array(value) for port, value in self._writer.infer(given).items()}
        self._kept |= {_taken(name): value for name, value in found.items() if name != "logits"}
        return np.asarray(found["logits"])

    def _pick(self, rows: NDArray[np.int64]) -> None:
        self._kept = {name: value[rows] for name, value in self._kept.items()}


def _taken(name: str) -> str:
    """Return what a graph takes keys or values as that it gives back by this name."""
    return name.replace("present", "past_key_values")


def _compiled(folder: Path, artifact: Mapping[str, Any], threads: int | None) -> tuple[Any, str]:
    """Compile the graph; return it, and in words what runs it."""
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("an OpenVINO model", install=extra("openvino")) from error
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[artifact["precision"]],
        "INFERENCE_NUM_THREADS": hardware.threads(threads),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if artifact.get("writes") and artifact["precision"] == "float32":
        settings["KV_CACHE_PRECISION"] = "f32"  # 8 bits by itself
    try:
        compiled = openvino.Core().compile_model(str(folder / artifact["files"][0]), "CPU", settings)
    except RuntimeError as error:
        raise unreadable(folder, "OpenVINO", error) from error
    return compiled, f"{artifact['precision']}, OpenVINO {openvino.__version__.partition('-')[0]}"


def opened(folder: Path, artifact: Mapping[str, Any], **options: Any) -> OpenVinoEngine | GraphWriter:
    """Open an artifact: one that answers, or one that writes, with an encoder or without."""
    if not artifact.get("writes"):
        return OpenVinoEngine(folder, artifact, **options)
    return (OpenVinoTranslator if "start" in artifact else OpenVinoWriter)(folder, artifact, **options)


PLUGIN = opened
