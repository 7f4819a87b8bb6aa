"""OpenVINO's own format: ``openvino_model.xml`` and ``openvino_model.bin``.

bfloat16 keeps its weights in float32 on disk, for the processor to round: which it can, where it has bfloat16 units.
Decoders keep keys and values inside (a stateful graph), as OpenVINO GenAI expects; their weights alone are quantized.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .base import Exporter, Source, Written, group_size, kind_of, still


class OpenVinoFormat(Exporter):
    """Graphs for OpenVINO."""

    target = "openvino"
    engine = "openvino"
    requires = ("openvino", "nncf")
    extra = "openvino"
    precisions = {  # noqa: RUF012
        "encoder": ("float32", "bfloat16", "int8"),
        "decoder": ("float32", "bfloat16", "int8", "int4"),
    }
    calibrated = ("int8",)
    mixed = ("int8",)

    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write the graph and its weights."""
        import openvino
        from transformers.exporters import OpenVINOConfig
        from transformers.exporters.exporter_openvino import OpenVINOExporter

        writes = kind_of(source.task, source.model.config) == "decoder"
        with still():
            config = OpenVINOConfig(dynamic=True, quantizer=_quantizer(source, precision, writes=writes))
            if writes:
                exported = OpenVINOExporter().export_for_generation(
                    source.model, source.prompt(), config, multi_token_decode=True
                )
                program = exported.components["decode"].program
            else:
                program = OpenVINOExporter().export(source.model, source.example(), config=config).program
            openvino.save_model(program, str(folder / "openvino_model.xml"), compress_to_fp16=False)
        return Written(["openvino_model.xml", "openvino_model.bin"], more={"writes": writes})


def _quantizer(source: Source, precision: str, *, writes: bool) -> Any:
    """Return what quantizes: weights and activations, calibrated on rows; or of a decoder the weights alone."""
    if precision not in ("int8", "int4"):
        return None
    import nncf
    from transformers.exporters import NNCFOpenVINOQuantizer, NNCFQuantizationConfig, NNCFWeightCompressionConfig

    if not writes:
        kept = nncf.IgnoredScope(names=_kept(source)) if source.kept else None
        config = NNCFQuantizationConfig(ignored_scope=kept)
        return NNCFOpenVINOQuantizer(config, calibration_dataset=list(source.samples()))
    weights = NNCFWeightCompressionConfig(mode=nncf.CompressWeightsMode.INT8_ASYM)
    if precision == "int4":
        mode, size = nncf.CompressWeightsMode.INT4_SYM, group_size(source.model)
        weights = NNCFWeightCompressionConfig(mode=mode, group_size=size)
    return NNCFOpenVINOQuantizer(weights)


def _kept(source: Source) -> list[str]:
    """Return the names of the matrix products of the modules that are kept: they are numbered as they are called."""
    import torch

    called: list[str] = []
    linear = [(n, m) for n, m in source.model.named_modules() if isinstance(m, torch.nn.Linear)]
    hooks = [module.register_forward_hook(lambda *_, name=name: called.append(name)) for name, module in linear]
    try:
        with torch.no_grad():
            source.model(**source.example())
    finally:
        for hook in hooks:
            hook.remove()
    inside = [any(f"{name}.".startswith(f"{module}.") for module in source.kept) for name in called]
    return [f"linear_{number}/aten.linear.default/MatMul" for number, kept in enumerate(inside) if kept]


PLUGIN = OpenVinoFormat()
