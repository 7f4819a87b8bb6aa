"""Any model whose attention goes through transformers' attention interface: rows packed end to end.

The model runs its own modules on one long row. Linear layers and norms don't care where a text ends; the
attention does, and transformers lets a registered function compute it (``AttentionInterface``). Ours cuts
the pack into its groups of near-equal length and leaves each to torch's scaled dot product attention, so
nothing is spent on padding and no kernel has to be compiled. Positions start anew with every text.

The base class's head is applied where the task reads: to the supervised tokens, to the first token of each
row, or to the mean over its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ._plain import base_output, token_logits
from .base import Dropout, Group, Pack, Projected, Weights

_NAME = "llmasos"


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    pack: Pack, scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None,
    is_causal: bool | None = None, **_others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """softmax(Q K^T scaling) V within each row of the pack. query: (1, heads, places, dim).

    Returns (1, places, heads, dim), zeros behind the last row.
    """
    del attention_mask
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    heads, dim = query.shape[1], query.shape[-1]
    parts = []
    for group in pack.groups:
        q, k, v = (_rectangle(states[0], group) for states in (query, key, value))
        mask, simple = _mask(group, causal, sliding_window, q)
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=simple, scale=scaling,
            enable_gqa=key.shape[1] != heads,
        )  # fmt: skip
        flat = out.transpose(1, 2).reshape(-1, heads, out.shape[-1])
        parts.append(flat if group.valid is None else flat.index_select(0, group.valid))
    if (behind := query.shape[2] - pack.tokens) > 0:
        parts.append(query.new_zeros(behind, heads, dim))
    return torch.cat(parts)[None], None


def _rectangle(states: Tensor, group: Group) -> Tensor:
    """(heads, places, dim) -> (rows, heads, length, dim)."""
    tokens = states[:, group.start : group.stop] if group.padded is None else states.index_select(1, group.padded)
    return tokens.view(len(tokens), group.rows, group.length, -1).transpose(0, 1)


def _mask(group: Group, causal: bool, window: int | None, like: Tensor) -> tuple[Tensor | None, bool]:
    """Return the mask of a group, and whether plain causality says it all (padding comes last, nobody sees it)."""
    if window is None or window >= group.length:
        if causal:
            return None, True
        return (None if group.bias is None else group.bias.to(like.dtype)), False
    at = torch.arange(group.length, device=like.device)
    distance = at[:, None] - at[None, :]
    near = (distance >= 0) & (distance < window) if causal else distance.abs() < window
    bias = torch.zeros_like(near, dtype=like.dtype).masked_fill(~near, -torch.inf)
    if group.bias is not None and not causal:
        padded = group.bias.to(like.dtype) + bias
        # a place of padding may see nobody: it sees itself, and is left out afterwards
        return padded.masked_fill(torch.eye(group.length, dtype=torch.bool, device=like.device), 0.0), False
    return bias, False


AttentionInterface.register(_NAME, packed_attention)
AttentionMaskInterface.register(_NAME, lambda *_args, **_kwargs: None)


@contextmanager
def _packed(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.config._attn_implementation = _NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before


class _Interface:
    autocast = True

    def reason_against(self, model: nn.Module, output: str) -> str | None:
        """Return why this model cannot be served, or None if it can."""
        config: Any = model.config
        if not getattr(model, "_supports_attention_backend", False):
            return f"the attention of {config.model_type} does not go through transformers' interface"
        if getattr(config, "is_encoder_decoder", False):
            return "an encoder with a decoder"
        if getattr(config, "attn_logit_softcapping", None):
            return "attention logits are capped"
        if output == "row" and not hasattr(model, "classifier"):
            return f"{type(model).__name__} reads its rows elsewhere than at their first token"
        if output == "row" and getattr(model.base_model, "pooler", None) is not None:
            return "the base model itself reads the first token"
        return None

    def layout(self, model: nn.Module) -> list[tuple[Tensor, ...]]:
        """Return nothing: the model's own modules read its own parameters."""
        del model
        return []

    def embedding(self, model: nn.Module) -> Tensor | None:
        """Return None: the model's own embedding gives dense gradients."""
        del model
        return None

    def forward(self, model: nn.Module, weights: Weights, output: str) -> _Forward:
        """Bind the forward to a model; the precision is that of ``weights``."""
        return _Forward(model, weights.dtype, output)


class _Forward:
    def __init__(self, model: Any, dtype: torch.dtype, output: str) -> None:
        self.model, self.output = model, output
        own = next(model.parameters()).dtype
        self._cast = dtype if dtype != own else None
        encoder = getattr(model.base_model, "embeddings", None)
        # RoBERTa and its kin count positions from behind the padding id
        counted = (
            getattr(encoder, "padding_idx", None) if hasattr(encoder, "create_position_ids_from_input_ids") else None
        )
        self._first_position = 0 if counted is None else counted + 1

    def __call__(self, pack: Pack, dropout: Dropout | None = None) -> Tensor | Projected:
        """Return what ``output`` says; with ``dropout`` the model's own modules drop, from torch's generator."""
        model = self.model
        model.train(dropout is not None)
        inputs = {
            "input_ids": pack.ids[None],
            "position_ids": pack.positions[None] + self._first_position,
            "pack": pack,
        }
        if pack.types is not None:
            inputs["token_type_ids"] = pack.types[None]
        kind = pack.ids.device.type
        with _packed(model), torch.autocast(kind, self._cast or torch.bfloat16, enabled=self._cast is not None):
            return self._read(model, pack, inputs)

    def _read(self, model: Any, pack: Pack, inputs: dict[str, Any]) -> Tensor | Projected:
        if self.output == "embedding":
            hidden = model(**inputs).last_hidden_state[0, : pack.tokens].float()
            return pack.means(hidden)
        if self.output == "token":
            return token_logits(model(**inputs))[0, : pack.tokens]
        if self.output == "row":
            with base_output(model, lambda hidden: hidden[0, pack.first][:, None]):
                return model(**inputs).logits  # type: ignore[no-any-return]
        assert pack.read is not None
        at = pack.read
        head = model.get_output_embeddings()
        if getattr(model, "can_generate", lambda: False)() and head is not None:
            hidden = model.base_model(**inputs, **_NO_CACHE).last_hidden_state[0].index_select(0, at)
            cap = getattr(model.config, "final_logit_softcapping", None)
            cast = self._cast

            def logits(states: Tensor) -> Tensor:
                with torch.autocast(states.device.type, cast or torch.bfloat16, enabled=cast is not None):
                    out = head(states)
                return out if cap is None else cap * torch.tanh(out / cap)  # type: ignore[no-any-return]

            return Projected(hidden, logits, model.config.vocab_size)
        with base_output(model, lambda hidden: hidden[0].index_select(0, at)[None]):
            return model(**inputs).logits.squeeze(0)  # type: ignore[no-any-return]


_NO_CACHE = {"use_cache": False}

PLUGIN = _Interface()
