"""OpenVINO: exported graphs on a processor, with numpy alone beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core import hardware
from ..core.errors import MissingExtraError
from ._graph import Arrays, GraphEngine, GraphWriter, extra, unreadable

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


def opened(folder: Path, artifact: Mapping[str, Any], **options: Any) -> OpenVinoEngine | OpenVinoWriter:
    """Open an artifact: one that answers, or one that writes."""
    return (OpenVinoWriter if artifact.get("writes") else OpenVinoEngine)(folder, artifact, **options)


PLUGIN = opened
