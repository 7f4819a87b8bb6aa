"""The ways to run a classifier that `predict` compares: how to export for each, load it and classify.

Each loader returns a function from texts to classes that includes tokenisation. Those that take batches
sort by length, and settle the batch size on the warm-up texts: everyone runs at his best. Exports are
transformers' own (``transformers.exporters``), with the quantizers that it wraps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import data, machine

Classify = Callable[[Sequence[str]], list[int]]
Warm = Sequence[str]
SIZES = (8, 16, 32)


@dataclass(frozen=True)
class Runtime:
    """One way to run the model: ``load(folder, work, warm-up texts)``, packages, and what to export first."""

    load: Callable[[Path, Path, Warm], tuple[Classify, dict[str, Any]]]
    requires: tuple[str, ...] = ()
    export: Callable[[Path, Path, Warm], None] | None = None


# -- transformers and this project --------------------------------------------------------------------


def pipeline(folder: Path, _work: Path, _warm: Warm, **options: Any) -> tuple[Classify, dict[str, Any]]:
    """transformers.pipeline as its documentation calls it: ``pipe(list of texts)``."""
    from transformers import pipeline as make

    pipe = make("text-classification", model=str(folder), **options)
    classes = pipe.model.config.label2id
    return lambda texts: [int(classes[found["label"]]) for found in pipe(list(texts))], {}


def pipeline_batched(folder: Path, work: Path, warm: Warm) -> tuple[Classify, dict[str, Any]]:
    """The same with its ``batch_size``."""
    return pipeline(folder, work, warm, batch_size=32)


def torch_fp32(folder: Path, _work: Path, warm: Warm) -> tuple[Classify, dict[str, Any]]:
    """The transformers model in float32 on batches of near-equal length: the reference labels."""
    return at_best_size(data.Tokenizer(folder), data.torch_logits(folder), warm)


def llmasos(folder: Path, _work: Path, _warm: Warm) -> tuple[Classify, dict[str, Any]]:
    """``LLM.predict`` on a list, as the README shows."""
    from llmasos import LLM

    model = LLM.from_pretrained(folder)
    return lambda texts: [int(found.label) for found in model.predict(list(texts))], {}


# -- ONNX Runtime -------------------------------------------------------------------------------------


def export_onnx(folder: Path, target: Path, _warm: Warm) -> None:
    """Export with ONNX Runtime's fusions and dynamic int8 quantization."""
    from transformers.exporters import OnnxConfig, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer
    from transformers.exporters.exporter_onnx import OnnxExporter

    quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig())
    config = OnnxConfig(dynamic=True, ort_fusions="cpu", quantizer=quantizer)
    OnnxExporter().export(_model(folder), _example(), config=config).save_pretrained(str(target))


def onnxruntime(folder: Path, target: Path, warm: Warm) -> tuple[Classify, dict[str, Any]]:
    """Run the exported graph on the physical cores."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = machine.describe()["cores"]
    session = ort.InferenceSession(str(target / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def logits(batch: data.Batch) -> NDArray[Any]:
        return np.asarray(session.run(["logits"], {name: batch[name] for name in names})[0])

    return at_best_size(data.Tokenizer(folder), logits, warm)


# -- OpenVINO -----------------------------------------------------------------------------------------


def export_openvino(folder: Path, target: Path, warm: Warm, *, int8: bool = False) -> None:
    """Export; with ``int8``, weights and activations are quantised and calibrated on 300 texts."""
    from transformers.exporters import OpenVINOConfig
    from transformers.exporters.exporter_openvino import OpenVINOExporter

    quantizer = None
    if int8:
        import torch
        from transformers.exporters import NNCFOpenVINOQuantizer

        rows = data.Tokenizer(folder)(warm[:300])
        samples = [{k: torch.from_numpy(v) for k, v in batch.items()} for _, batch in data.batches(rows, 1)]
        quantizer = NNCFOpenVINOQuantizer(calibration_dataset=samples)
    config = OpenVINOConfig(dynamic=True, quantizer=quantizer)
    OpenVINOExporter().export(_model(folder), _example(), config=config).save_pretrained(str(target))


def export_openvino_int8(folder: Path, target: Path, warm: Warm) -> None:
    """Export with calibrated int8 weights and activations."""
    export_openvino(folder, target, warm, int8=True)


def openvino(folder: Path, target: Path, warm: Warm) -> tuple[Classify, dict[str, Any]]:
    """Run the exported graph; what is not int8 runs in bf16."""
    import openvino as ov

    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": machine.describe()["cores"]}
    compiled = ov.Core().compile_model(str(target / "openvino_model.xml"), "CPU", settings)
    names = [item.any_name for item in compiled.inputs]
    request = compiled.create_infer_request()

    def logits(batch: data.Batch) -> NDArray[Any]:
        return np.asarray(request.infer({name: batch[name] for name in names})[0])

    return at_best_size(data.Tokenizer(folder), logits, warm)


# -- inner --------------------------------------------------------------------------------------------


def at_best_size(
    tokenizer: data.Tokenizer, logits: Callable[[data.Batch], NDArray[Any]], warm: Warm
) -> tuple[Classify, dict[str, Any]]:
    """Return a classifier at the batch size that was quickest on the warm-up texts, after one pass at each."""

    def seconds(size: int) -> float:
        start = time.perf_counter()
        data.classify(warm, tokenizer, logits, size)
        return time.perf_counter() - start

    start = time.perf_counter()
    for size in SIZES:
        seconds(size)
    best = min(SIZES, key=seconds)
    extra = {"batch_size": best, "tuning_seconds": time.perf_counter() - start}
    return lambda texts: data.classify(texts, tokenizer, logits, best), extra


def _model(folder: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def _example() -> dict[str, Any]:
    """Return a small batch to trace; sizes above 1, which an export would take for constants."""
    import torch

    shape = (2, 16)
    ones = torch.ones(shape, dtype=torch.int64)
    return {"input_ids": ones * 100, "attention_mask": ones, "token_type_ids": torch.zeros_like(ones)}


RUNTIMES = {
    "pipeline": Runtime(pipeline),
    "pipeline_batched": Runtime(pipeline_batched),
    "torch_fp32_sorted": Runtime(torch_fp32),
    "onnxruntime_int8": Runtime(onnxruntime, ("onnx", "onnxscript", "onnxruntime"), export_onnx),
    "openvino_bf16": Runtime(openvino, ("openvino",), export_openvino),
    "openvino_int8": Runtime(openvino, ("openvino", "nncf"), export_openvino_int8),
    "llmasos": Runtime(llmasos),
}
