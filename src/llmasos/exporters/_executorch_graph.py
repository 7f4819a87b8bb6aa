"""How a transformers model becomes an ExecuTorch program: quantized, traced with a length that is free, and lowered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, export


def quantize(model: nn.Module, kept: Sequence[str], precision: str, group: int) -> None:
    """Round the weights in place, but for the modules that are kept.

    Args:
        model: a copy.
        kept: names of modules that stay as they are.
        precision: "float32", "int8" or "int4".
        group: weights of 4 bits that share a scale.
    """
    if precision == "float32":
        return
    from torchao.quantization import quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.quant_api import Int8DynamicActivationIntxWeightConfig

    names = [name for name, _ in model.named_modules() if not any(f"{name}.".startswith(f"{one}.") for one in kept)]
    for name in names:
        if type(table := model.get_submodule(name)) is nn.Embedding:
            model.set_submodule(name, _Table(table.weight))
    dtype = getattr(torch, precision)
    granularity = PerGroup(group) if precision == "int4" else PerAxis(0)
    products = Int8DynamicActivationIntxWeightConfig(weight_dtype=dtype, weight_granularity=granularity)
    quantize_(model, products, lambda module, name: isinstance(module, nn.Linear) and name in names)


class _Table(nn.Module):
    """A table of embeddings in 8 bits, each row with a scale: two look-ups and a product, which every runtime has."""

    rows: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = weight.detach().abs().amax(1, keepdim=True).clamp_min(1e-12) / 127.0
        self.register_buffer("scale", scale)
        self.register_buffer("rows", (weight.detach() / scale).round().to(torch.int8))

    def forward(self, ids: Tensor) -> Tensor:
        return torch.embedding(self.rows, ids).float() * torch.embedding(self.scale, ids)


class _Encoder(nn.Module):
    """A row without padding in, what the task reads out."""

    def __init__(self, model: Any, output: str) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = self.model(input_ids=input_ids, **types)
        if self.output == "embedding":
            return found.last_hidden_state.mean(1)  # type: ignore[no-any-return]
        if "start_logits" in found:
            return torch.stack([found.start_logits, found.end_logits], dim=-1)
        return found.logits  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    """Tokens and their places in, the logits after the last one out; keys and values stay inside."""

    def __init__(self, model: Any, longest: int) -> None:
        super().__init__()
        from transformers import StaticCache
        from transformers.configuration_utils import get_head_shapes

        self.model = model
        config = model.config.get_text_config()
        self.cache = StaticCache(max_cache_len=longest, config=config)
        heads, width = get_head_shapes(config)
        self.cache.early_initialization(1, heads, width, torch.float32, torch.device("cpu"))
        for i, layer in enumerate(self.cache.layers):  # what is a buffer is kept from call to call
            for name in ("keys", "values", "cumulative_length"):
                self.register_buffer(f"{name}_{i}", getattr(layer, name), persistent=False)

    def forward(self, input_ids: Tensor, cache_position: Tensor) -> Tensor:
        for layer in self.cache.layers:
            layer.cumulative_length.copy_(cache_position[0])
        found = self.model(input_ids=input_ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return found.logits  # type: ignore[no-any-return]


def inputs(example: Mapping[str, Tensor]) -> list[str]:
    """Return the names of an encoder's inputs; a row alone needs no mask."""
    return [name for name in ("input_ids", "token_type_ids") if name in example]


def encoder(model: Any, output: str, *, longest: int, inputs: Sequence[str]) -> Any:
    """Return the program of a model that reads rows of up to ``longest`` tokens."""
    tokens = Dim("tokens", min=1, max=longest)
    row = torch.arange(1, 1 + min(7, longest))[None]
    given = {name: row if name == "input_ids" else torch.zeros_like(row) for name in inputs}
    return _lowered(_Encoder(model, output), given, {name: {1: tokens} for name in given})


def decoder(model: Any, *, longest: int, chunk: int) -> Any:
    """Return the program of a model that writes, with room for ``longest`` tokens, of which it reads ``chunk`` at once.

    Its constants are those that ExecuTorch's own runners of language models ask for.
    """
    tokens = Dim("tokens", min=1, max=chunk)
    given = {"input_ids": torch.arange(1, 4)[None], "cache_position": torch.arange(3)}
    constants = {
        "get_max_seq_len": chunk, "get_max_context_len": longest, "get_vocab_size": model.config.vocab_size,
        "use_kv_cache": True, "enable_dynamic_shape": True,
    }  # fmt: skip
    shapes = {"input_ids": {1: tokens}, "cache_position": {0: tokens}}
    return _lowered(_Decoder(model, longest), given, shapes, constants)


def _lowered(
    module: nn.Module,
    given: Mapping[str, Tensor],
    shapes: Mapping[str, Any],
    constants: Mapping[str, Any] | None = None,
) -> Any:
    """Trace and lower: what XNNPACK can is its, the rest is ExecuTorch's own kernels'."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    module = module.eval().requires_grad_(False)
    with torch.no_grad():
        traced = export(module, args=(), kwargs=dict(given), dynamic_shapes=dict(shapes), strict=True)
        edge = to_edge_transform_and_lower(
            traced, partitioner=[XnnpackPartitioner()], constant_methods=dict(constants or {})
        )
        return edge.to_executorch()
