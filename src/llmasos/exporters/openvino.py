"""OpenVINO's own format: ``openvino_model.xml`` and ``openvino_model.bin``.

bfloat16 keeps its weights in float32 on disk, for the processor to round: which it can, where it has bfloat16 units.
Decoders keep keys and values inside (a stateful graph), as OpenVINO GenAI expects; their weights alone are quantized.
A model with an encoder besides is two graphs that keep nothing, see ``_translators.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ._onnx import known_as
from .base import KINDS, Exporter, Source, Written, group_size, kind_of, still


class OpenVinoFormat(Exporter):
    """Graphs for OpenVINO."""

    target = "openvino"
    engine = "openvino"
    requires = ("openvino", "nncf")
    extra = "openvino"
    precisions = {  # noqa: RUF012
        "encoder": ("float32", "bfloat16", "int8"),
        "decoder": ("float32", "bfloat16", "int8", "int4"),
        "encoder-decoder": ("float32", "bfloat16", "int8"),
    }
    calibrated = ("int8",)
    mixed = ("int8",)

    def mixes(self, kind: str, precision: str) -> bool:
        """Say whether parts can stay in float32; products of two graphs cannot be told apart by their numbers."""
        return kind != KINDS[2] and super().mixes(kind, precision)

    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write each graph and its weights."""
        import openvino

        from ..decoders._plain import start_of

        kind = kind_of(source.task, source.model.config)
        more: dict[str, Any] = {"writes": source.task.writes()}
        if kind == KINDS[2]:
            more["start"] = start_of(source.model)
        with still():
            programs = _programs(source, kind, precision)
            for name, program in programs.items():
                openvino.save_model(program, str(folder / f"{name}.xml"), compress_to_fp16=False)
        return Written([f"{name}.{end}" for name in programs for end in ("xml", "bin")], more=more)


def _programs(source: Source, kind: str, precision: str) -> dict[str, Any]:
    """Return the graphs by their names, what is run first first."""
    from transformers.exporters import OpenVINOConfig
    from transformers.exporters.exporter_openvino import OpenVINOExporter

    from ._translators import Reading, writing

    exporter, model = OpenVINOExporter(), source.model
    config = OpenVINOConfig(
        dynamic=True, quantizer=_quantizer(source, precision, writes=kind != KINDS[0]), stateful=kind != KINDS[2]
    )
    if kind == KINDS[0]:
        return {"openvino_model": exporter.export(model, source.example(), config=config).program}
    if kind == KINDS[1]:
        exported = exporter.export_for_generation(model, source.prompt(), config, multi_token_decode=True)
        return {"openvino_model": exported.components["decode"].program}
    reads = exporter.export(Reading(model).eval(), source.prompt(), config=config).program
    writes = exporter.export(*writing(model, source.prompt()), config=config).program
    return {"openvino_encoder_model": reads, "openvino_decoder_with_past_model": _needed(writes)}


def _needed(program: Any) -> Any:
    """Give keys and values the names that others know them by; leave out what a step of writing only passes on."""
    import openvino.opset13 as opset

    for port in [*program.inputs, *program.outputs]:
        port.get_tensor().set_names({known_as(port.get_any_name())})
    for result in program.get_results():
        if not any(name == "logits" or ".decoder." in name for name in result.get_output_tensor(0).get_names()):
            program.remove_result(result)
    for parameter in program.get_parameters():
        for place in parameter.output(0).get_target_inputs():
            if place.get_node().get_type_name() == "ConvertLike" and place.get_index() == 1:  # of which type it is
                place.replace_source_output(opset.constant(0.0, dtype=np.float32).output(0))
        if not parameter.output(0).get_target_inputs():
            program.remove_parameter(parameter)
    return program


def _quantizer(source: Source, precision: str, *, writes: bool) -> Any:
    """Return what quantizes: weights and activations, calibrated on rows; or of a decoder the weights alone."""
    if precision not in ("int8", "int4"):
        return None
    import nncf
    from transformers.exporters import NNCFOpenVINOQuantizer, NNCFQuantizationConfig, NNCFWeightCompressionConfig

    kept = nncf.IgnoredScope(names=_kept(source)) if source.kept else None
    if not writes:
        config = NNCFQuantizationConfig(ignored_scope=kept)
        return NNCFOpenVINOQuantizer(config, calibration_dataset=list(source.samples()))
    weights = NNCFWeightCompressionConfig(mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=kept)
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
