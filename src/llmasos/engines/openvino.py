"""OpenVINO: exported graphs on a processor, with numpy alone beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import hardware
from ..core.errors import MissingExtraError
from ._graph import Arrays, GraphEngine, unreadable

HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32", "int4": "f32"}
"""What is computed in where the graph does not say; by itself OpenVINO takes bfloat16 for float32."""


class OpenVinoEngine(GraphEngine):
    """Run an OpenVINO graph; see ``GraphEngine``."""

    runtime = "openvino"

    def _open(self, folder: Path, artifact: Mapping[str, Any], threads: int | None) -> Sequence[str]:
        try:
            import openvino
        except ImportError as error:
            raise MissingExtraError("an OpenVINO model", install="'llmasos[openvino]'") from error
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[artifact["precision"]],
            "INFERENCE_NUM_THREADS": threads or hardware.physical_cores(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            compiled = openvino.Core().compile_model(str(folder / artifact["files"][0]), "CPU", settings)
        except RuntimeError as error:
            raise unreadable(folder, "OpenVINO", error) from error
        self.how = f"{artifact['precision']}, OpenVINO {openvino.__version__.partition('-')[0]}"
        self._request = compiled.create_infer_request()
        self._outputs = [(port, port.get_names()) for port in compiled.outputs]
        return [port.any_name for port in compiled.inputs]

    def _run(self, inputs: Arrays) -> Arrays:
        found = self._request.infer(dict(inputs), share_inputs=True)
        return {name: found[port] for port, names in self._outputs for name in names}


PLUGIN = OpenVinoEngine
