"""Llama and its relatives whose layers are the same, Mistral, Qwen2 and Qwen3.

The layers run in the precision of the work (``_pre_norm.py``). So does the product with the head, but its gradient
and that of the words' table, which are sums over many tokens, are added up in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._embedding import looked_up
from ._pre_norm import LayerShape, LayerWeights, Turns, decoder_layer, layout
from .base import Dropout, Pack, Prefix, Projected, Weights, frozen_layers

_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")
_TABLE = 256  # positions are tabulated for a multiple of it


class _LlamaFamily:
    autocast = False

    def reason_against(self, model: nn.Module, output: str) -> str | None:
        """Return why this model cannot be served, or None if it can."""
        config: Any = model.config
        if config.model_type not in _TYPES:
            return f"model type {config.model_type} is not of this family"
        if output != "vocabulary" or not type(model).__name__.endswith("ForCausalLM"):
            return f"{type(model).__name__} has another head"
        if config.hidden_act != "silu":
            return f"activation {config.hidden_act}"
        if getattr(config, "attention_dropout", 0.0):
            return "its attention drops out"
        if getattr(config, "sliding_window", None):
            return "it attends in a sliding window"
        if config.rope_parameters["rope_type"] not in _FIXED_ROPE:
            return f"its positions are of type {config.rope_parameters['rope_type']}"
        return _unlike(model)

    def layout(self, model: nn.Module) -> list[tuple[Tensor, ...]]:
        """Return the layers' parameters, those of one product together."""
        return [part for layer in _layers(model) for part in layout(layer)]

    def embedding(self, model: nn.Module) -> Tensor | None:
        """Return the words' table; None where it is also the head's matrix, and every row has a gradient."""
        whole: Any = model
        table: Tensor = whole.model.embed_tokens.weight
        return None if whole.lm_head.weight is table else table

    def prefix(self, model: nn.Module, output: str) -> Prefix | None:
        """Return what is below the trained layers of a model, or None where no layer is."""
        del output
        config: Any = model.config
        layers = _frozen(model)
        return Prefix(layers, config.hidden_size, per_row=False, dropout=0.0) if layers else None

    def forward(self, model: nn.Module, weights: Weights, output: str) -> _LlamaForward:
        """Bind the forward to a model and to where its weights are."""
        del output
        return _LlamaForward(model, weights)


def _layers(model: Any) -> Any:
    return model.model.layers


def _frozen(model: Any) -> int:
    return frozen_layers(model.model.embed_tokens, _layers(model))


def _unlike(model: Any) -> str | None:
    """Return what is unusual about the layers, or None."""
    if type(model.lm_head) is not nn.Linear or model.lm_head.bias is not None:
        return "its head is no plain matrix"
    for layer in _layers(model):
        attention, mlp = layer.self_attn, layer.mlp
        qkv = (attention.q_proj, attention.k_proj, attention.v_proj)
        gates = (mlp.gate_proj, mlp.up_proj)
        if any(type(module) is not nn.Linear for module in (*qkv, *gates, attention.o_proj, mlp.down_proj)):
            return "there is an adapter on its layers"
        if any(module.bias is not None for module in (*gates, attention.o_proj, mlp.down_proj)):
            return "its products have biases"
        biases = [module.bias for module in qkv if module.bias is not None]
        together = ([module.weight for module in qkv], biases, [module.weight for module in gates])
        if any(len({parameter.requires_grad for parameter in parameters}) > 1 for parameters in together):
            return "what is one product here is frozen in parts"
    return None


class _LlamaForward:
    """Words, layers, the last norm and the head where the task reads."""

    def __init__(self, model: Any, weights: Weights) -> None:
        config = model.config
        self.model, self.weights = model, weights
        first = _layers(model)[0].self_attn
        self.shape = LayerShape(
            config.num_attention_heads,
            config.num_key_value_heads,
            int(first.head_dim),
            float(config.rms_norm_eps),
            float(first.scaling),
        )
        self.layers = [LayerWeights(layer, weights) for layer in _layers(model)]
        self.frozen = _frozen(model)
        self.turns: Turns | None = None

    def __call__(self, pack: Pack, dropout: Dropout | None = None) -> Projected:
        """Return the states where the task reads, and the head for them."""
        return self.above(self.below(pack, dropout), pack, dropout)

    def below(self, pack: Pack, dropout: Dropout | None = None) -> Tensor:
        """Return the states under the trained layers (``DividedForward``)."""
        del dropout  # none of these models has any
        x = looked_up(pack.ids, self.model.model.embed_tokens, self.weights)
        return self._run(self.layers[: self.frozen], x, pack)

    def above(self, states: Tensor, pack: Pack, dropout: Dropout | None = None) -> Projected:
        """Return the states where the task reads, and the head for them, from what ``below`` gave."""
        del dropout
        assert pack.read is not None
        model = self.model
        x = self._run(self.layers[self.frozen :], states, pack)
        norm, head = model.model.norm, model.lm_head.weight
        x = x.index_select(0, pack.read).float()
        x = functional.rms_norm(x, (x.shape[1],), norm.weight, self.shape.epsilon).to(self.weights.dtype)
        head = head if torch.is_grad_enabled() else head.to(x.dtype)
        return Projected(x, lambda states: functional.linear(states, head.to(states.dtype)), len(head), head)

    def _run(self, layers: list[LayerWeights], x: Tensor, pack: Pack) -> Tensor:
        turns = self._turns(max(group.length for group in pack.groups), x)
        for layer in layers:
            x = decoder_layer(x, layer, self.shape, pack.groups, turns)
        return x

    def _turns(self, length: int, like: Tensor) -> Turns:
        if self.turns is None or len(self.turns.keys[0]) < length:
            places = torch.arange(-(-length // _TABLE) * _TABLE, device=like.device)[None]
            cos, sin = (table[0].float() for table in self.model.model.rotary_emb(like.float(), places))
            scaled = (cos * self.shape.scale, sin * self.shape.scale)
            keys, queries = (tuple(t.to(like.dtype) for t in tables) for tables in ((cos, sin), scaled))
            self.turns = Turns(keys, queries)
        return self.turns


PLUGIN = _LlamaFamily()
