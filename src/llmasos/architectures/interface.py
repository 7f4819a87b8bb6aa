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
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from ._paired import Paired, paired, places, why_not
from ._plain import base_output, head_reads, token_logits
from .base import Dropout, Group, Pack, Projected, QuickDropout, Weights

_NAME = "llmasos"


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    pack: Pack | Paired, scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None,
    is_causal: bool | None = None, **_others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """softmax(Q K^T scaling) V within each row of the pack. query: (1, heads, places, dim).

    Returns (1, places, heads, dim), zeros behind the last row.
    """
    del attention_mask
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotated in float32, under autocast
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    heads, dim = query.shape[1], query.shape[-1]
    asking, asked = pack.sides(module) if isinstance(pack, Paired) else (pack, pack)
    parts, room = [], _KEPT
    cut = (_rectangles(query[0], asking), _rectangles(key[0], asked), _rectangles(value[0], asked))
    for group, other, q, k, v in zip(asking.groups, asked.groups, *cut, strict=True):
        mask, simple = _mask(other, causal, sliding_window, q)
        scores = group.rows * heads * group.length * other.length
        if scores <= room and _explicit(q, k):
            room -= scores
            out = _attend(q, k, v, mask, dropout, dim**-0.5 if scaling is None else scaling, causal=simple)
        else:
            out = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=simple, scale=scaling,
                enable_gqa=key.shape[1] != heads,
            )  # fmt: skip
        flat = out.transpose(1, 2).reshape(-1, heads, out.shape[-1])
        parts.append(flat if group.valid is None else flat.index_select(0, group.valid))
    if (behind := query.shape[2] - asking.tokens) > 0:
        parts.append(query.new_zeros(behind, heads, dim))
    return (parts[0] if len(parts) == 1 else torch.cat(parts))[None], None


_KEPT = 1 << 24
"""Scores that a layer keeps for its backward pass, 32 MB; torch's kernel computes those beyond it again."""


def _explicit(q: Tensor, k: Tensor) -> bool:
    """Whether three products and a softmax are quicker: so it is in training on a CPU with bfloat16 tiles.

    The backward pass of torch's own kernel there takes 70 ms for 32 rows of 4 heads and 256 tokens, this one 26.
    """
    trained = q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16
    return trained and q.shape[1] == k.shape[1]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float, *, causal: bool
) -> Tensor:
    """softmax(Q K^T scale) V. q, k, v: (rows, heads, length, dim)."""
    scores = torch.matmul(q * scale, k.transpose(-1, -2))
    if causal:
        length = q.shape[2]
        mask = torch.full((length, length), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
    if mask is not None:
        scores = scores + mask
    return torch.matmul(functional.dropout(scores.softmax(-1), dropout), v)


def _rectangles(states: Tensor, pack: Pack) -> list[Tensor]:
    """(heads, places, dim) -> (rows, heads, length, dim) for each group.

    They are split in one go: slices would each fill an array of zeros in the backward pass.
    """
    sizes = [group.stop - group.start for group in pack.groups]
    parts = torch.split(states, [*sizes, states.shape[1] - pack.tokens], dim=1)
    return [_rectangle(part, group) for part, group in zip(parts, pack.groups, strict=False)]


def _rectangle(tokens: Tensor, group: Group) -> Tensor:
    if group.padded is not None:
        tokens = tokens.index_select(1, (group.padded - group.start).clamp_(min=0))
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
        if getattr(config, "is_encoder_decoder", False):
            return why_not(model) if output == "vocabulary" else "an encoder with a decoder"
        if not getattr(model, "_supports_attention_backend", False):
            return f"the attention of {config.model_type} does not go through transformers' interface"
        if getattr(config, "attn_logit_softcapping", None):
            return "attention logits are capped"
        if output == "row" and not hasattr(model, "classifier"):
            return f"{type(model).__name__} reads its rows elsewhere than at their first token"
        if output == "row" and getattr(model.base_model, "pooler", None) is not None:
            return "the base model itself reads the first token"
        return None

    def layout(self, model: nn.Module) -> list[tuple[Tensor, ...]]:
        """Return what a decoder computes with in the precision of the work; else nothing: see ``_Lowered``."""
        return [(parameter,) for parameter in _lowered(model)]

    def embedding(self, model: nn.Module) -> Tensor | None:
        """Return None: the model's own embedding gives dense gradients."""
        del model
        return None

    def forward(self, model: nn.Module, weights: Weights, output: str) -> _Forward:
        """Bind the forward to a model; the precision is that of ``weights``."""
        return _Forward(model, weights, output)


def _lowered(model: Any) -> list[Tensor]:
    """Return the parameters that a decoder with rotated positions needs in low precision: all but its vocabulary."""
    if not getattr(model, "can_generate", lambda: False)():
        return []
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = model.get_output_embeddings()
    if head is None or len(tables) != 1:  # learned positions are added in the precision of their table
        return []
    kept = {id(p) for module in (*tables, head) for p in module.parameters()}
    return [p for p in model.parameters() if id(p) not in kept]


class _Lowered:
    """A decoder's modules on copies of their parameters in the precision of the work.

    Under autocast alone the states between modules stay in float32: every product casts its input and its weight,
    and every sum and every norm moves twice the bytes. With copies that follow each step nothing is cast but the
    words' states, once. Gradients arrive where ``weights`` wants them. The vocabulary's table and head stay as they
    are, since their gradients are sums over many tokens.
    """

    def __init__(self, model: Any, weights: Weights) -> None:
        self._table, self._dtype = model.get_input_embeddings(), weights.dtype
        copies: dict[int, nn.Parameter] = {}
        for parameter in _lowered(model):
            gradient = weights.gradient(parameter)
            copy = nn.Parameter(weights.work(parameter), requires_grad=gradient is not None)
            copy.grad = gradient
            copies[id(parameter)] = copy
        self._places = [
            (module, name, copies[id(parameter)])
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and id(parameter) in copies
        ]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the modules compute with the copies."""
        own = [(module, name, module._parameters[name]) for module, name, _ in self._places]
        for module, name, copy in self._places:
            if copy.grad is not None and torch.is_grad_enabled():
                copy.grad.zero_()  # what came before has been taken over
            module._parameters[name] = copy
        hook = self._table.register_forward_hook(lambda _module, _inputs, states: states.to(self._dtype))
        try:
            yield
        finally:
            hook.remove()
            for module, name, parameter in own:
                module._parameters[name] = parameter


class _Forward:
    def __init__(self, model: Any, weights: Weights, output: str) -> None:
        self.model, self.output = model, output
        own = next(model.parameters()).dtype
        self._cast = weights.dtype if weights.dtype != own else None
        self._lowered = _Lowered(model, weights) if self._cast is not None and _lowered(model) else None
        encoder = getattr(model.base_model, "embeddings", None)
        # RoBERTa and its kin count positions from behind the padding id
        counted = (
            getattr(encoder, "padding_idx", None) if hasattr(encoder, "create_position_ids_from_input_ids") else None
        )
        self._first_position = 0 if counted is None else counted + 1

    def __call__(self, pack: Pack, dropout: Dropout | None = None) -> Tensor | Projected:
        """Return what ``output`` says; with ``dropout`` the model's own modules drop, with masks from it."""
        model = self.model
        model.train(dropout is not None)
        kind = pack.ids.device.type
        drops = nullcontext() if dropout is None else QuickDropout(dropout)
        cast = torch.autocast(kind, self._cast or torch.bfloat16, enabled=self._cast is not None)
        if getattr(model.config, "is_encoder_decoder", False):
            packs = paired(model, pack)
            with _packed(model), places(model, packs), drops, cast:
                return self._written(model, packs)
        inputs = {
            "input_ids": pack.ids[None],
            "position_ids": pack.positions[None] + self._first_position,
            "pack": pack,
        }
        if pack.types is not None:
            inputs["token_type_ids"] = pack.types[None]
        lowered = nullcontext() if self._lowered is None else self._lowered.used()
        with _packed(model), lowered, drops, cast:
            return self._read(model, pack, inputs)

    def _written(self, model: Any, packs: Paired) -> Projected:
        """Read the sources, and the targets beside them."""
        assert packs.source.read is not None
        return head_reads(
            model, packs.source.read, input_ids=packs.source.ids[None], decoder_input_ids=packs.target.ids[None],
            pack=packs,
        )  # fmt: skip

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
            return head_reads(model, at, **inputs)
        with base_output(model, lambda hidden: hidden[0].index_select(0, at)[None]):
            return model(**inputs).logits.squeeze(0)  # type: ignore[no-any-return]


PLUGIN = _Interface()
