"""ONNX Runtime: exported graphs on a processor, with numpy alone beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import hardware
from ..core.errors import MissingExtraError
from ._graph import Arrays, GraphEngine, unreadable


class OnnxRuntimeEngine(GraphEngine):
    """Run an ONNX graph; see ``GraphEngine``."""

    runtime = "onnxruntime"

    def _open(self, folder: Path, artifact: Mapping[str, Any], threads: int | None) -> Sequence[str]:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("an ONNX model", install="'llmasos[onnx]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or hardware.physical_cores()
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / artifact["files"][0]), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own classes have no common base
            raise unreadable(folder, "ONNX Runtime", error) from error
        self.how = f"{artifact['precision']}, ONNX Runtime {onnxruntime.__version__}"
        self._outputs = [item.name for item in self._session.get_outputs()]
        return [item.name for item in self._session.get_inputs()]

    def _run(self, inputs: Arrays) -> Arrays:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


PLUGIN = OnnxRuntimeEngine
