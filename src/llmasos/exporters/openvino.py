"""OpenVINO's own format: ``openvino_model.xml`` and ``openvino_model.bin``.

bfloat16 keeps its weights in float32 on disk, for the processor to round: which it can, where it has bfloat16 units.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .base import Exporter, Source, Written, still


class OpenVinoFormat(Exporter):
    """Graphs for OpenVINO."""

    target = "openvino"
    engine = "openvino"
    requires = ("openvino", "nncf")
    extra = "openvino"
    precisions = ("float32", "bfloat16", "int8")
    outputs = ("row", "token", "embedding", "vocabulary")
    calibrated = ("int8",)

    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write the graph and its weights."""
        import openvino
        from transformers.exporters import OpenVINOConfig
        from transformers.exporters.exporter_openvino import OpenVINOExporter

        with still():
            config = OpenVINOConfig(dynamic=True, quantizer=_quantizer(source, precision))
            program = OpenVINOExporter().export(source.model, source.example(), config=config).program
            openvino.save_model(program, str(folder / "openvino_model.xml"), compress_to_fp16=False)
        return Written(["openvino_model.xml", "openvino_model.bin"])


def _quantizer(source: Source, precision: str) -> Any:
    """Return what quantizes weights and activations, calibrated on rows."""
    if precision != "int8":
        return None
    from transformers.exporters import NNCFOpenVINOQuantizer

    return NNCFOpenVINOQuantizer(calibration_dataset=list(source.samples()))


PLUGIN = OpenVinoFormat()
