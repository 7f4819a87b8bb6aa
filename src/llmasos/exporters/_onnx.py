"""ONNX, laid out as transformers.js expects it: ``onnx/model.onnx``, ``onnx/model_quantized.onnx``, ...

The graph is transformers' own export with ONNX Runtime's fusions. ``int8`` is calibrated: the ranges of activations are
found on rows, so that an answer does not depend on the rows beside it. ``int8-dynamic`` finds them anew for each batch:
quicker to make, nothing to calibrate, and an answer depends a little on what it is computed with.

A decoder is one graph that reads any number of tokens after any number of others, whose keys and values come in as
``past_key_values.N.key`` and go out as ``present.N.key``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .base import Exporter, Source, Written, group_size, kind_of, still

NAMES = {
    "float32": "model.onnx",
    "float16": "model_fp16.onnx",
    "int8": "model_quantized.onnx",
    "int8-dynamic": "model_quantized.onnx",
    "int4": "model_q4.onnx",
}
_LARGEST = 3 << 29  # bytes of weights in one file; protobuf's own limit is 2 GB


class OnnxFormat(Exporter):
    """ONNX graphs, run by ONNX Runtime."""

    target = "onnx"
    engine = "onnxruntime"
    requires = ("onnx", "onnxscript", "onnxruntime", "nncf")
    extra = "onnx"
    precisions = {  # noqa: RUF012
        "encoder": ("float32", "float16", "int8", "int8-dynamic"),
        "decoder": ("float32", "float16", "int8-dynamic", "int4"),
    }
    calibrated = ("int8",)
    mixed = ("int8", "int8-dynamic")

    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write ``onnx/<name>.onnx``: one file, or weights beside it where protobuf's 2 GB are not enough."""
        import onnx_ir
        from transformers.exporters import ExportFormat, OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter

        writes = kind_of(source.task, source.model.config) == "decoder"
        with still():
            # NNCF quantizes plain operations, which alone tell their module; ONNX Runtime fuses them when it opens them
            plain = precision in ("int8", "int4") or bool(source.kept)
            config = OnnxConfig(dynamic=True, ort_fusions=None if plain else "cpu")
            if writes:
                exported = OnnxExporter().export_for_generation(
                    source.model, source.prompt(), config, multi_token_decode=True
                )
                program = _named(exported.components["decode"].program)
            else:
                program = OnnxExporter().export(source.model, source.example(), config=config).program
            if precision == "float16":
                program = _halved(program)
            elif precision != "float32":
                quantizer = _quantizer(source, precision, _kept(program, source.kept))
                program = quantizer.quantize(program, source.example(), ExportFormat.ONNX)
        place = folder / "onnx"
        place.mkdir()
        name = NAMES[precision]
        size = sum(v.const_value.nbytes for v in program.graph.initializers.values() if v.const_value is not None)
        apart = size > _LARGEST
        onnx_ir.save(program, str(place / name), external_data=f"{name}_data" if apart else None)
        return Written([f"onnx/{name}", *([f"onnx/{name}_data"] if apart else [])], more={"writes": writes})


def _quantizer(source: Source, precision: str, kept: list[str]) -> Any:
    """Return what quantizes the graph, weights of each output channel apart, but for the nodes that are kept.

    Dynamic: 7 bits of 8 (``reduce_range``), since processors without VNNI add products of 8 bits in 16 and overflow: a
    MiniLM on SST-2 was 1.0 from its logits on such a machine with 8 bits, and 0.36 with 7.
    """
    from transformers import exporters

    if precision == "int8-dynamic":
        dynamic = exporters.OnnxRuntimeDynamicConfig(per_channel=True, reduce_range=True, nodes_to_exclude=kept)
        return exporters.OnnxRuntimeQuantizer(dynamic)
    import nncf

    if precision == "int4":
        mode, size = nncf.CompressWeightsMode.INT4_SYM, group_size(source.model)
        weights = exporters.NNCFWeightCompressionConfig(mode=mode, group_size=size)
        return exporters.NNCFOnnxQuantizer(weights)
    config = exporters.NNCFQuantizationConfig(ignored_scope=nncf.IgnoredScope(names=kept) if kept else None)
    return exporters.NNCFOnnxQuantizer(config, calibration_dataset=list(source.samples()))


def _kept(program: Any, modules: tuple[str, ...]) -> list[str]:
    """Return the names of the matrix products that belong to some modules."""
    places = {node.name: node.metadata_props.get(_SCOPES, "") for node in program.graph if node.op_type in _PRODUCTS}
    return [name for name, scopes in places.items() if any(f"'{module}'" in scopes for module in modules)]


_SCOPES = "pkg.torch.onnx.name_scopes"
_PRODUCTS = ("MatMul", "Gemm")


def _halved(program: Any) -> Any:
    """Return the graph in float16, its inputs and outputs as they are."""
    import onnx_ir
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx_ir.to_proto(program), keep_io_types=True, disable_shape_infer=True)
    return onnx_ir.from_proto(model)


def _named(program: Any) -> Any:
    """Give the keys and values the names that other runtimes know them by."""
    import onnx_ir

    for value in [*program.graph.inputs, *program.graph.outputs]:
        found = re.fullmatch(r"(input|output)\.past_key_values\.layers\.(\d+)\.(key|value)s", value.name)
        if found:
            value.name = f"{'past_key_values' if found[1] == 'input' else 'present'}.{found[2]}.{found[3]}"
            sizes = [getattr(size, "value", size) for size in value.shape]  # heads and width are names of numbers
            value.shape = onnx_ir.Shape([int(size) if str(size).isdigit() else size for size in sizes])
    return program
