"""One Transformer decoder layer with the norm before each half (Touvron et al. 2023: Llama, Mistral, Qwen).

Forward and backward are written out. RMS norms (Zhang & Sennrich 2019) lose their weights to the products behind
them, W (w * n) = (W w) n, so that over the tokens only the division by the root mean square is left, and both
its gradients come out of small arrays. Positions are turned (Su et al. 2021) while heads are laid out, and
attention is three products and a softmax where the scores are few, torch's own kernel where they are many.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._softmax import softmax, softmax_backward
from .base import Group, Weights, write

aten = torch.ops.aten

_KEPT = 1 << 24
"""Probabilities that a layer keeps for its backward pass, 32 MB in bfloat16; those beyond it are computed again."""
_LARGEST = 1 << 24
"""Scores of a group that are computed at once; beyond it torch's kernel works in pieces of its own."""


class LayerShape(NamedTuple):
    """Sizes that all layers of a model share."""

    queries: int
    keys: int
    width: int
    epsilon: float
    scale: float

    @property
    def turned(self) -> int:
        """Width of queries and keys together."""
        return (self.queries + self.keys) * self.width


class Turns(NamedTuple):
    """Cosines and sines of the positions, (positions, head width), and the same times the attention's scale."""

    keys: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]


class _Product:
    """Linear layers side by side, the weight of the norm before them folded in."""

    def __init__(self, layers: tuple[nn.Linear, ...], norm: Any | None, weights: Weights) -> None:
        self.weights = weights
        self.matrix = weights.work(*(layer.weight for layer in layers))
        self.place = weights.gradient(*(layer.weight for layer in layers))
        biased = layers[0].bias is not None
        self.bias = weights.work(*(layer.bias for layer in layers)) if biased else None
        self.bias_place = weights.gradient(*(layer.bias for layer in layers)) if biased else None
        self.norm = None if norm is None else weights.work(norm.weight)
        self.norm_place = None if norm is None else weights.gradient(norm.weight)
        if self.norm is not None and self.place is None and self.norm_place is None:
            self.matrix, self.norm = self.matrix * self.norm, None  # both stay as they are

    @property
    def trained(self) -> bool:
        return any(place is not None for place in (self.place, self.bias_place, self.norm_place))

    def folded(self) -> Tensor:
        """Return the matrix that works on what is normalised, (out, in)."""
        return self.matrix if self.norm is None else self.matrix * self.norm

    def leave(self, gradient: Tensor, inputs: Tensor) -> None:
        """Leave the gradients. gradient: (tokens, out), inputs: (tokens, in)."""
        if self.bias_place is not None:
            write(self.weights, self.bias_place, gradient.sum(0))
        if self.norm is None:
            if self.place is not None:
                self.place.addmm_(gradient.t(), inputs, beta=0.0 if self.weights.fresh else 1.0)
            return
        folded = torch.mm(gradient.t(), inputs)
        if self.norm_place is not None:
            write(self.weights, self.norm_place, (folded * self.matrix).sum(0))
        if self.place is not None:
            write(self.weights, self.place, folded.mul_(self.norm))


class _HeadNorms:
    """RMS norms of single heads, queries' and keys', as Qwen3 has them."""

    def __init__(self, attention: Any, weights: Weights) -> None:
        norms = (attention.q_norm, attention.k_norm)
        self.weights = weights
        self.factors = [weights.work(norm.weight) for norm in norms]
        self.places = [weights.gradient(norm.weight) for norm in norms]

    @property
    def trained(self) -> bool:
        return any(place is not None for place in self.places)

    def normalize(self, qkv: Tensor, shape: LayerShape) -> tuple[Tensor, Tensor]:
        """Normalise the heads in place; return what the backward pass needs."""
        heads = qkv[:, : shape.turned].reshape(-1, shape.width)
        normalized, inverse = _normalized(heads, shape.epsilon)
        qkv[:, : shape.turned] = (normalized.view(len(qkv), -1, shape.width) * self._factor(shape)).flatten(1)
        return normalized, inverse

    def back(self, dqkv: Tensor, saved: tuple[Tensor, Tensor], shape: LayerShape) -> None:
        """Take the gradient of the heads back in place, and leave that of the factors."""
        normalized, inverse = saved
        gradient = dqkv[:, : shape.turned].reshape(len(dqkv), -1, shape.width)
        if self.trained:
            sums = (gradient * normalized.view_as(gradient)).sum(0)
            for place, part in zip(self.places, (sums[: shape.queries], sums[shape.queries :]), strict=True):
                write(self.weights, place, part.sum(0))
        heads = (gradient * self._factor(shape)).view(-1, shape.width)
        dqkv[:, : shape.turned] = _norm_backward(heads, normalized, inverse).view(len(dqkv), -1)

    def _factor(self, shape: LayerShape) -> Tensor:
        counts = (shape.queries, shape.keys)
        return torch.cat([f.expand(count, -1) for f, count in zip(self.factors, counts, strict=True)])


class LayerWeights:
    """The four products of a layer and the norms of its heads, in the precision of the work; where gradients go."""

    def __init__(self, layer: Any, weights: Weights) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv = _Product(projections, layer.input_layernorm, weights)
        self.output = _Product((attention.o_proj,), None, weights)
        self.up = _Product((mlp.gate_proj, mlp.up_proj), layer.post_attention_layernorm, weights)
        self.down = _Product((mlp.down_proj,), None, weights)
        self.heads = _HeadNorms(attention, weights) if hasattr(attention, "q_norm") else None

    @property
    def trained(self) -> bool:
        """Whether any of its parameters is."""
        parts = (self.qkv, self.output, self.up, self.down, self.heads)
        return any(part.trained for part in parts if part is not None)


def layout(layer: Any) -> list[tuple[Tensor, ...]]:
    """Return a layer's parameters, those of one product together."""
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    parts = [tuple(linear.weight for linear in projections), (attention.o_proj.weight,)]
    if attention.q_proj.bias is not None:
        parts.append(tuple(linear.bias for linear in projections))
    if hasattr(attention, "q_norm"):
        parts += [(attention.q_norm.weight,), (attention.k_norm.weight,)]
    parts += [(mlp.gate_proj.weight, mlp.up_proj.weight), (mlp.down_proj.weight,)]
    return [*parts, (layer.input_layernorm.weight,), (layer.post_attention_layernorm.weight,)]


def decoder_layer(
    x: Tensor, weights: LayerWeights, shape: LayerShape, groups: tuple[Group, ...], turns: Turns
) -> Tensor:
    """Run one layer. x: (places, hidden) -> (places, hidden)."""
    lowest = weights.trained and torch.is_grad_enabled() and not x.requires_grad
    if lowest:
        x.requires_grad_()  # nothing below is trained: nobody reads its gradient, but the layer's backward must run
    return _Layer.apply(x, weights, shape, groups, turns, lowest)  # type: ignore[no-any-return,no-untyped-call]


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: LayerWeights, shape: LayerShape, groups: tuple[Group, ...], turns: Turns, lowest: bool
    ) -> Tensor:
        ctx.lowest = lowest
        n1, inverse1 = _normalized(x, shape.epsilon)
        qkv = functional.linear(n1, w.qkv.folded(), w.qkv.bias)
        head_norms = None if w.heads is None else w.heads.normalize(qkv, shape)
        context, saved = _attend(qkv, shape, groups, turns, keep=x.requires_grad)
        x1 = torch.addmm(x, context, w.output.matrix.t())
        n2, inverse2 = _normalized(x1, shape.epsilon)
        gate_up = torch.mm(n2, w.up.folded().t())
        gate, up = gate_up.chunk(2, dim=1)
        gated = functional.silu(gate)
        ctx.parts = (
            w, shape, groups, turns, n1, inverse1, head_norms, context, saved, n2, inverse2, gate_up, gated,
        )  # fmt: skip
        return torch.addmm(x1, gated * up, w.down.matrix.t())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        w, shape, groups, turns, n1, inverse1, head_norms, context, saved, n2, inverse2, gate_up, gated = ctx.parts
        ctx.parts = None  # frees the saved tensors as soon as they are used up
        # second half: down, the gate, up, norm
        gate, up = gate_up.chunk(2, dim=1)
        w.down.leave(gradient, gated * up)
        dinner = torch.mm(gradient, w.down.matrix)
        gated.mul_(dinner)  # the gradient of up
        aten.silu_backward.grad_input(dinner.mul_(up), gate, grad_input=gate)  # every gradient replaces its value
        up.copy_(gated)
        w.up.leave(gate_up, n2)
        dx1 = _norm_backward(torch.mm(gate_up, w.up.folded()), n2, inverse2, gradient)
        # first half: output projection, attention, projections, norm
        w.output.leave(dx1, context)
        dqkv = _attend_backward(torch.mm(dx1, w.output.matrix), saved, shape, groups, turns)
        if w.heads is not None:
            w.heads.back(dqkv, head_norms, shape)
        w.qkv.leave(dqkv, n1)
        dx = None if ctx.lowest else _norm_backward(torch.mm(dqkv, w.qkv.folded()), n1, inverse1, dx1)
        return dx, None, None, None, None, None


def _normalized(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return x over its root mean square, and one over that, (places, 1), in float32."""
    total = torch.linalg.vector_norm(x, 2, -1, keepdim=True, dtype=torch.float32)
    inverse = total.square_().div_(x.shape[1]).add_(epsilon).rsqrt_()
    if x.dtype == torch.float32:
        return x * inverse, inverse
    high = inverse.to(x.dtype)  # the factor in two parts, rounded but once: as exact as through float32
    return torch.addcmul(x * (inverse - high).to(x.dtype), x, high), inverse


def _norm_backward(gradient: Tensor, normalized: Tensor, inverse: Tensor, residual: Tensor | None = None) -> Tensor:
    """Return the gradient before the norm, (dn - n mean(dn n)) / rms, and the residual's added to it."""
    mean = (gradient * normalized).sum(-1, keepdim=True, dtype=torch.float32).div_(-gradient.shape[1])
    inner = torch.addcmul(gradient, normalized, mean.to(gradient.dtype))
    inverse = inverse.to(gradient.dtype)
    return inner.mul_(inverse) if residual is None else torch.addcmul(residual, inner, inverse)


# -- attention ----------------------------------------------------------------------------------------


def _turned(heads: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Turn positions. heads: (rows, heads, length, width), of any layout -> the same, contiguous."""
    cos, sin = (table[: heads.shape[2]] for table in turns)
    half = heads.shape[-1] // 2
    out = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    torch.mul(heads, cos, out=out)
    out[..., :half].addcmul_(heads[..., half:], sin[:, :half], value=-1)
    out[..., half:].addcmul_(heads[..., :half], sin[:, half:])
    return out


def _turn_back(gradient: Tensor, turns: tuple[Tensor, Tensor], out: Tensor) -> None:
    """The same for gradients, by the transposed matrix, into ``out``."""
    cos, sin = (table[: gradient.shape[2]] for table in turns)
    half = gradient.shape[-1] // 2
    torch.mul(gradient, cos, out=out)
    out[..., :half].addcmul_(gradient[..., half:], sin[:, half:])
    out[..., half:].addcmul_(gradient[..., :half], sin[:, :half], value=-1)


class _Saved(NamedTuple):
    """What a group's backward pass needs: ``out`` with its graph where torch's kernel worked."""

    q: Tensor
    k: Tensor
    v: Tensor
    probabilities: Tensor | None = None
    out: Tensor | None = None


def _attend(
    qkv: Tensor, shape: LayerShape, groups: tuple[Group, ...], turns: Turns, *, keep: bool
) -> tuple[Tensor, list[_Saved]]:
    """softmax(Q K^T scale) V over what came before, group by group. Returns (places, hidden) and the saved parts."""
    width = shape.queries * shape.width
    context = torch.empty((len(qkv), width), dtype=qkv.dtype, device=qkv.device)
    context[groups[-1].stop :] = 0.0  # places behind the last row: read by nobody, but they must be finite
    saved: list[_Saved] = []
    room = _KEPT
    for group in groups:
        tokens = qkv[group.start : group.stop] if group.padded is None else qkv.index_select(0, group.padded)
        heads = tokens.view(group.rows, group.length, -1, shape.width).transpose(1, 2)
        q = _turned(heads[:, : shape.queries], turns.queries)
        k = _turned(heads[:, shape.queries : shape.queries + shape.keys], turns.keys)
        v = heads[:, shape.queries + shape.keys :].contiguous()
        scores = group.rows * shape.queries * group.length**2
        if keep and q.device.type == "cpu" and scores <= _LARGEST:  # torch's kernel takes five times as long backward
            probabilities = _probabilities(q, k)
            out = torch.bmm(probabilities, _grouped(v, shape.keys)).view(q.shape)
            room -= scores
            saved.append(_Saved(q, k, v, probabilities if room >= 0 else None))
        else:
            out, parts = _kernel(q, k, v, keep=keep)
            saved.append(parts)
        if group.valid is None:
            place = context[group.start : group.stop].view(group.rows, group.length, shape.queries, shape.width)
            place.transpose(1, 2).copy_(out)
        else:
            flat = out.transpose(1, 2).reshape(-1, width)
            torch.index_select(flat, 0, group.valid, out=context[group.start : group.stop])
    return context, saved


def _grouped(heads: Tensor, keys: int) -> Tensor:
    """(rows, heads, length, width) -> (rows * keys, heads / keys * length, width): as if heads were positions."""
    return heads.view(heads.shape[0] * keys, -1, heads.shape[-1])


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    """Return softmax(Q K^T), nothing looking ahead, (rows * keys, heads / keys * length, length)."""
    keys, length = k.shape[1], k.shape[2]
    mask = torch.full((length, length), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)
    mask = mask.repeat(q.shape[1] // keys, 1)[None]
    return softmax(torch.baddbmm(mask, _grouped(q, keys), _grouped(k, keys).transpose(1, 2)))


def _products_backward(gradient: Tensor, saved: _Saved) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, probabilities, _ = saved
    keys = k.shape[1]
    probabilities = _probabilities(q, k) if probabilities is None else probabilities
    out = _grouped(gradient.contiguous(), keys)
    dv = torch.bmm(probabilities.transpose(1, 2), out)
    ds = softmax_backward(torch.bmm(out, _grouped(v, keys).transpose(1, 2)), probabilities)
    dq = torch.bmm(ds, _grouped(k, keys))
    dk = torch.bmm(ds.transpose(1, 2), _grouped(q, keys))
    return dq.view(q.shape), dk.view(k.shape), dv.view(v.shape)


def _kernel(q: Tensor, k: Tensor, v: Tensor, *, keep: bool) -> tuple[Tensor, _Saved]:
    """The same by torch's kernel; what is saved is its own graph."""
    with torch.set_grad_enabled(keep):
        q, k, v = (part.detach().requires_grad_(keep) for part in (q, k, v))
        out = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=1.0, enable_gqa=q.shape[1] != k.shape[1]
        )
    return out.detach(), _Saved(q, k, v, out=out)


def _attend_backward(
    gradient: Tensor, saved: list[_Saved], shape: LayerShape, groups: tuple[Group, ...], turns: Turns
) -> Tensor:
    """Return the gradient of the projections, (places, (queries + 2 keys) width)."""
    heads = shape.queries + 2 * shape.keys
    dqkv = torch.empty((len(gradient), heads * shape.width), dtype=gradient.dtype, device=gradient.device)
    dqkv[groups[-1].stop :] = 0.0
    for group, parts in zip(groups, saved, strict=True):
        tokens = gradient[group.start : group.stop]
        if group.valid is not None:
            rectangle = gradient.new_zeros(group.rows * group.length, gradient.shape[1])
            tokens = rectangle.index_copy_(0, group.valid, tokens)
        dout = tokens.view(group.rows, group.length, shape.queries, shape.width).transpose(1, 2)
        if parts.out is None:
            dq, dk, dv = _products_backward(dout, parts)
        else:
            dq, dk, dv = torch.autograd.grad(parts.out, parts[:3], dout)
        flat = dqkv[group.start : group.stop]
        if group.valid is not None:
            flat = torch.empty((group.rows * group.length, dqkv.shape[1]), dtype=dqkv.dtype, device=dqkv.device)
        place = flat.view(group.rows, group.length, heads, shape.width).transpose(1, 2)
        _turn_back(dq, turns.queries, place[:, : shape.queries])
        _turn_back(dk, turns.keys, place[:, shape.queries : shape.queries + shape.keys])
        place[:, shape.queries + shape.keys :] = dv
        if group.valid is not None:
            torch.index_select(flat, 0, group.valid, out=dqkv[group.start : group.stop])
    return dqkv
