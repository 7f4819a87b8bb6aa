"""ONNX, laid out as transformers.js expects it: ``onnx/model.onnx``, ``onnx/model_quantized.onnx``, ...

The graph is transformers' own export with ONNX Runtime's fusions. ``int8`` is calibrated: the ranges of activations are
found on rows, so that an answer does not depend on the rows beside it. ``int8-dynamic`` finds them anew for each batch:
quicker to make, nothing to calibrate, and an answer depends a little on what it is computed with.

A decoder is one graph that reads any number of tokens after any number of others, whose keys and values come in as
``past_key_values.N.key`` and go out as ``present.N.key``. A model with an encoder besides is two, ``encoder_model`` and
``decoder_with_past_model``: see ``_translators.py``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .base import KINDS, Exporter, Source, Written, group_size, kind_of, still

SUFFIXES = {"float32": "", "float16": "_fp16", "int8": "_quantized", "int8-dynamic": "_quantized", "int4": "_q4"}
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
        "encoder-decoder": ("float32", "float16", "int8-dynamic"),
    }
    calibrated = ("int8",)
    mixed = ("int8", "int8-dynamic")

    def write(self, source: Source, folder: Path, precision: str) -> Written:
        """Write ``onnx/<name>.onnx``: one file a graph, or weights beside it where protobuf's 2 GB are not enough."""
        from transformers.exporters import ExportFormat, OnnxConfig

        from ..decoders._plain import start_of

        kind = kind_of(source.task, source.model.config)
        more: dict[str, Any] = {"writes": source.task.writes()}
        if kind == KINDS[2]:
            more["start"] = start_of(source.model)
        with still():
            # NNCF quantizes plain operations, which alone tell their module; ONNX Runtime fuses them when it opens them
            plain = precision in ("int8", "int4") or bool(source.kept)
            config = OnnxConfig(dynamic=True, ort_fusions=None if plain else "cpu")
            programs = _programs(source, kind, config)
            for name, program in programs.items():
                if precision == "float16":
                    programs[name] = _halved(program)
                elif precision != "float32":
                    quantizer = _quantizer(source, precision, _kept(program, source.kept))
                    programs[name] = _fusible(quantizer.quantize(program, source.example(), ExportFormat.ONNX))
        (folder / "onnx").mkdir()
        files = [_saved(program, folder, f"{name}{SUFFIXES[precision]}.onnx") for name, program in programs.items()]
        return Written([file for some in files for file in some], more=more)


def _programs(source: Source, kind: str, config: Any) -> dict[str, Any]:
    """Return the graphs by their names, what is run first first."""
    from transformers.exporters.exporter_onnx import OnnxExporter

    from ._translators import Reading, writing

    exporter, model = OnnxExporter(), source.model
    if kind == KINDS[0]:
        return {"model": exporter.export(model, source.example(), config=config).program}
    if kind == KINDS[1]:
        exported = exporter.export_for_generation(model, source.prompt(), config, multi_token_decode=True)
        return {"model": _named(exported.components["decode"].program)}
    reads = exporter.export(Reading(model).eval(), source.prompt(), config=config).program
    writes = _named(exporter.export(*writing(model, source.prompt()), config=config).program)
    return {"encoder_model": reads, "decoder_with_past_model": _needed(writes)}


def _saved(program: Any, folder: Path, name: str) -> list[str]:
    """Write a graph; return its files."""
    import onnx_ir

    size = sum(v.const_value.nbytes for v in program.graph.initializers.values() if v.const_value is not None)
    apart = size > _LARGEST
    onnx_ir.save(program, str(folder / "onnx" / name), external_data=f"{name}_data" if apart else None)
    return [f"onnx/{name}", *([f"onnx/{name}_data"] if apart else [])]


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
    inside = [re.compile(rf"['.]{re.escape(module)}'") for module in modules]
    return [name for name, scopes in places.items() if any(one.search(scopes) for one in inside)]


_SCOPES = "pkg.torch.onnx.name_scopes"
_PRODUCTS = ("MatMul", "Gemm")


def _fusible(program: Any) -> Any:
    """Lay a calibrated graph out so that ONNX Runtime computes it in 8 bits.

    It makes an integer product of a matrix product only where what it multiplies is quantized for it alone: the
    queries, keys and values of a layer, which share their input, would be computed in floats, all weights turned back
    at each call. And rows are picked from a table before they are turned back, not the whole table after that. The two
    were most of the time of a short text.
    """
    for node in list(program.graph):
        if node.op_type == "DequantizeLinear":
            uses, maker = list(node.outputs[0].uses()), node.inputs[0].producer()
            if maker is None and all(user.op_type == "Gather" for user, _ in uses):
                _pick_before(program.graph, node, [user for user, _ in uses])
            elif maker is not None and all(user.op_type in _PRODUCTS for user, _ in uses):
                for user, place in uses[1:]:
                    quantized = _node(maker.op_type, list(maker.inputs), *maker.attributes.values())
                    floats = _node(node.op_type, [quantized.outputs[0], *node.inputs[1:]], *node.attributes.values())
                    program.graph.insert_before(user, [quantized, floats])
                    user.replace_input_with(place, floats.outputs[0])
    return program


def _pick_before(graph: Any, node: Any, users: list[Any]) -> None:
    """Turn back only those rows of a table that are picked; a table that is not made as ours are stays as it is."""
    import onnx_ir

    table, scale, *zero = node.inputs
    rows_first = all(user.attributes["axis"].as_int() == 0 for user in users if "axis" in user.attributes)
    if not rows_first or len(scale.shape) != 1 or any(each.const_value.numpy().any() for each in zero):
        return
    column = onnx_ir.tensor(scale.const_value.numpy()[:, None], name=f"{scale.name}_column")
    scales = onnx_ir.Value(name=column.name, shape=column.shape, type=scale.type, const_value=column)
    graph.register_initializer(scales)
    for user in users:
        rows, each = (_node("Gather", [value, user.inputs[1]]) for value in (table, scales))
        floats = _node("Cast", [rows.outputs[0]], onnx_ir.AttrInt64("to", onnx_ir.DataType.FLOAT))
        product = _node("Mul", [floats.outputs[0], each.outputs[0]])
        graph.insert_before(user, [rows, each, floats, product])
        user.outputs[0].replace_all_uses_with(product.outputs[0])
        graph.remove(user, safe=True)
    graph.remove(node, safe=True)
    for value in (scale, *zero):
        if not value.uses():
            graph.initializers.pop(value.name)


def _node(kind: str, inputs: list[Any], *attributes: Any) -> Any:
    import onnx_ir

    return onnx_ir.Node("", kind, inputs, list(attributes))


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
        before, value.name = value.name, known_as(value.name)
        if value.name != before and len(value.shape) == 4:
            sizes = [getattr(size, "value", size) for size in value.shape]  # heads and width are names of numbers
            value.shape = onnx_ir.Shape([int(size) if str(size).isdigit() else size for size in sizes])
    return program


def known_as(name: str) -> str:
    """Return how other runtimes call what transformers' export calls by this name."""
    if found := _KEPT.fullmatch(name):
        way, part, layer, what = found.groups()
        side = {None: "", "self": "decoder.", "cross": "encoder."}[part]
        return f"{'past_key_values' if way == 'input' else 'present'}.{layer}.{side}{what}"
    return "input_ids" if name == "decoder_input_ids" else name


_KEPT = re.compile(r"(input|output)\.past_key_values\.(?:(self|cross)_attention_cache\.)?layers\.(\d+)\.(key|value)s")


def _needed(program: Any) -> Any:
    """Leave out what a step of writing gives back as it came, and takes without using it."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = program.graph
    graph.outputs[:] = [value for value in graph.outputs if value.name == "logits" or ".decoder." in value.name]
    RemoveUnusedNodesPass()(program)
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    return program
