"""Which variable of a KerasHub model holds which tensor of the Hugging Face folder, both ways.

One table for each architecture, read from left to right to start a training and from right to left to end it. A
tensor is only cut, turned and reshaped, so that there and back again is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Pair(NamedTuple):
    """One tensor of transformers and the paths of the Keras variables that hold it.

    ``turned``: a ``Linear`` keeps (out, in), a Keras kernel (in, out). Several variables are equal parts of the
    tensor along its last axis, after it was turned.
    """

    tensor: str
    variables: tuple[str, ...]
    turned: bool = False


def _pairs(tensor: str, variable: str, *, turned: bool = True, norm: bool = False) -> tuple[Pair, Pair]:
    """Return weight and bias of a dense layer, or of a layer norm."""
    weight, bias = ("gamma", "beta") if norm else ("kernel", "bias")
    return (
        Pair(f"{tensor}.weight", (f"{variable}/{weight}",), turned and not norm),
        Pair(f"{tensor}.bias", (f"{variable}/{bias}",)),
    )


def _fused(tensor: str, variable: str) -> tuple[Pair, Pair]:
    """Return weight and bias of a product that gives queries, keys and values side by side (a ``Conv1D``)."""
    names = ("query", "key", "value")
    return (
        Pair(f"{tensor}.weight", tuple(f"{variable}/{name}/kernel" for name in names)),
        Pair(f"{tensor}.bias", tuple(f"{variable}/{name}/bias" for name in names)),
    )


_BERT = (
    Pair("bert.embeddings.word_embeddings.weight", ("token_embedding/embeddings",)),
    Pair("bert.embeddings.position_embeddings.weight", ("position_embedding/embeddings",)),
    Pair("bert.embeddings.token_type_embeddings.weight", ("segment_embedding/embeddings",)),
    *_pairs("bert.embeddings.LayerNorm", "embeddings_layer_norm", norm=True),
    *_pairs("bert.pooler.dense", "pooled_dense"),
    *_pairs("classifier", "logits"),
)
_BERT_LAYER = (
    *_pairs("bert.encoder.layer.{i}.attention.self.query", "transformer_layer_{i}/self_attention_layer/query"),
    *_pairs("bert.encoder.layer.{i}.attention.self.key", "transformer_layer_{i}/self_attention_layer/key"),
    *_pairs("bert.encoder.layer.{i}.attention.self.value", "transformer_layer_{i}/self_attention_layer/value"),
    *_pairs(
        "bert.encoder.layer.{i}.attention.output.dense", "transformer_layer_{i}/self_attention_layer/attention_output"
    ),
    *_pairs(
        "bert.encoder.layer.{i}.attention.output.LayerNorm",
        "transformer_layer_{i}/self_attention_layer_norm",
        norm=True,
    ),
    *_pairs("bert.encoder.layer.{i}.intermediate.dense", "transformer_layer_{i}/feedforward_intermediate_dense"),
    *_pairs("bert.encoder.layer.{i}.output.dense", "transformer_layer_{i}/feedforward_output_dense"),
    *_pairs("bert.encoder.layer.{i}.output.LayerNorm", "transformer_layer_{i}/feedforward_layer_norm", norm=True),
)
_GPT2 = (
    Pair("transformer.wte.weight", ("token_embedding/embeddings",)),
    Pair("transformer.wpe.weight", ("position_embedding/embeddings",)),
    *_pairs("transformer.ln_f", "layer_norm", norm=True),
)
_GPT2_LAYER = (
    *_pairs("transformer.h.{i}.ln_1", "transformer_layer_{i}/self_attention_layer_norm", norm=True),
    *_fused("transformer.h.{i}.attn.c_attn", "transformer_layer_{i}/self_attention"),
    *_pairs("transformer.h.{i}.attn.c_proj", "transformer_layer_{i}/self_attention/attention_output", turned=False),
    *_pairs("transformer.h.{i}.ln_2", "transformer_layer_{i}/feedforward_layer_norm", norm=True),
    *_pairs("transformer.h.{i}.mlp.c_fc", "transformer_layer_{i}/feedforward_intermediate_dense", turned=False),
    *_pairs("transformer.h.{i}.mlp.c_proj", "transformer_layer_{i}/feedforward_output_dense", turned=False),
)
_LLAMA = (
    Pair("model.embed_tokens.weight", ("token_embedding/embeddings",)),
    Pair("lm_head.weight", ("token_embedding/reverse_embeddings",), True),
    Pair("model.norm.weight", ("sequence_output_layernorm/scale",)),
)
_LLAMA_LAYER = (
    Pair("model.layers.{i}.input_layernorm.weight", ("transformer_layer_{i}/self_attention_layernorm/scale",)),
    Pair("model.layers.{i}.self_attn.q_proj.weight", ("transformer_layer_{i}/self_attention/query/kernel",), True),
    Pair("model.layers.{i}.self_attn.k_proj.weight", ("transformer_layer_{i}/self_attention/key/kernel",), True),
    Pair("model.layers.{i}.self_attn.v_proj.weight", ("transformer_layer_{i}/self_attention/value/kernel",), True),
    Pair(
        "model.layers.{i}.self_attn.o_proj.weight",
        ("transformer_layer_{i}/self_attention/attention_output/kernel",),
        True,
    ),
    Pair("model.layers.{i}.post_attention_layernorm.weight", ("transformer_layer_{i}/feedforward_layernorm/scale",)),
    Pair("model.layers.{i}.mlp.gate_proj.weight", ("transformer_layer_{i}/feedforward_gate_dense/kernel",), True),
    Pair("model.layers.{i}.mlp.up_proj.weight", ("transformer_layer_{i}/feedforward_intermediate_dense/kernel",), True),
    Pair("model.layers.{i}.mlp.down_proj.weight", ("transformer_layer_{i}/feedforward_output_dense/kernel",), True),
)
_TABLES = {"bert": (_BERT, _BERT_LAYER), "gpt2": (_GPT2, _GPT2_LAYER), "llama": (_LLAMA, _LLAMA_LAYER)}


def pairs(model_type: str, tensors: Iterable[str]) -> list[Pair]:
    """Return the table's lines for the tensors of one model, in their order.

    Raises:
        KeyError: a tensor has no line: the model is not of the architecture that the table is for.
    """
    once, each = _TABLES[model_type]
    names = list(tensors)
    layers = 1 + max((int(part) for name in names for part in name.split(".") if part.isdigit()), default=-1)
    lines = {pair.tensor: pair for pair in once}
    for i in range(layers):
        for pair in each:
            filled = Pair(pair.tensor.format(i=i), tuple(name.format(i=i) for name in pair.variables), pair.turned)
            lines[filled.tensor] = filled
    return [lines[name] for name in names]


def to_keras(pair: Pair, tensor: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return the value of each variable of a pair. ``shapes``: of all variables, by path."""
    parts = np.split(tensor.T if pair.turned else tensor, len(pair.variables), axis=-1)
    return {name: part.reshape(shapes[name]) for name, part in zip(pair.variables, parts, strict=True)}


def to_torch(pair: Pair, values: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    """Return the tensor of a pair, of this shape, from the values of the variables by path."""
    whole = shape[::-1] if pair.turned else shape
    one = (*whole[:-1], whole[-1] // len(pair.variables))
    tensor = np.concatenate([values[name].reshape(one) for name in pair.variables], axis=-1)
    return np.ascontiguousarray(tensor.T if pair.turned else tensor)
