"""One Transformer encoder layer with the norm after the residual (Vaswani et al. 2017; BERT, RoBERTa).

Forward and backward are written out, so that a step is matrix products and little else: queries, keys
and values are one product, gradients of weights go straight to their place, dropout masks come
ready-made, and only the positions that somebody reads are computed (``only``: the last layer of a
classifier is read at its first token alone, which saves five sixths of that layer).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ._blocked import Blocked
from ._softmax import VECTOR, softmax, softmax_backward
from .base import Dropout, Group, Snapshot, Weights, write

aten = torch.ops.aten


@dataclass(frozen=True)
class LayerShape:
    """Sizes and probabilities that all layers of a model share."""

    heads: int
    epsilon: float
    hidden_dropout: float
    attention_dropout: float


class LayerParameters(NamedTuple):
    """The parameters of one layer, as transformers names them."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: nn.LayerNorm
    intermediate: nn.Linear
    output: nn.Linear
    output_norm: nn.LayerNorm


class LayerWeights:
    """The weights of one layer in the precision of the work, with the places of their gradients."""

    def __init__(self, parts: LayerParameters, weights: Weights) -> None:
        self.weights = weights
        linear: list[tuple[nn.Linear, ...]] = [
            (parts.query, parts.key, parts.value),
            (parts.attention_output,),
            (parts.intermediate,),
            (parts.output,),
        ]
        matrices = [weights.work(*(m.weight for m in group)) for group in linear]
        biases = [weights.work(*(m.bias for m in group)) for group in linear]
        self.qkv, self.attention, self.up, self.down = zip(matrices, biases, strict=True)
        self.gradients = [
            (weights.gradient(*(m.weight for m in group)), weights.gradient(*(m.bias for m in group)))
            for group in linear
        ]
        norms = (parts.attention_norm, parts.output_norm)
        self.norms = [(weights.work(n.weight), weights.work(n.bias)) for n in norms]
        self.norm_gradients = [(weights.gradient(n.weight), weights.gradient(n.bias)) for n in norms]

    @property
    def trained(self) -> bool:
        """Whether any of its parameters is."""
        return any(place is not None for pair in (*self.gradients, *self.norm_gradients) for place in pair)

    def write_linear(
        self, which: int, gradient: Tensor, inputs: Tensor, scale: float = 1.0, at: slice = slice(None)
    ) -> None:
        """Leave the gradient of a linear layer. gradient: (tokens, out), inputs: (tokens, in)."""
        matrix, bias = self.gradients[which]
        if matrix is not None:
            beta = 0.0 if self.weights.fresh else 1.0
            matrix[at].addmm_(gradient.t(), inputs, beta=beta, alpha=scale)
        if bias is not None:
            total = gradient.sum(0)
            write(self.weights, bias[at], total if scale == 1.0 else total * scale)


class LayerProducts:
    """The same of a model that only answers, each product laid out once."""

    def __init__(self, parts: LayerParameters, weights: Weights) -> None:
        def product(*layers: nn.Linear) -> Blocked:
            return Blocked(weights.work(*(m.weight for m in layers)), weights.work(*(m.bias for m in layers)))

        self._product, self._parts = product, parts
        self.attention, self.up, self.down = map(product, (parts.attention_output, parts.intermediate, parts.output))
        norms = (parts.attention_norm, parts.output_norm)
        self.norms = [(weights.work(n.weight), weights.work(n.bias)) for n in norms]

    @cached_property
    def qkv(self) -> Blocked:
        """Queries, keys and values."""
        return self._product(self._parts.query, self._parts.key, self._parts.value)

    @cached_property
    def query_and_others(self) -> tuple[Blocked, Blocked]:
        """Queries; keys and values: where few places are read."""
        return self._product(self._parts.query), self._product(self._parts.key, self._parts.value)


def layer_weights(parts: LayerParameters, weights: Weights) -> LayerWeights | LayerProducts:
    """Return the weights of a layer as the work asks for them."""
    return (LayerProducts if type(weights) is Snapshot else LayerWeights)(parts, weights)


def encoder_layer(
    x: Tensor,
    weights: LayerWeights | LayerProducts,
    shape: LayerShape,
    groups: tuple[Group, ...],
    dropout: Dropout | None,
    only: Tensor | None = None,
) -> Tensor:
    """Run one layer. x: (tokens, hidden) -> (tokens, hidden), or (len(only), hidden)."""
    if isinstance(weights, LayerProducts):
        return _answered(x, weights, shape, groups, dropout, only)
    lowest = weights.trained and torch.is_grad_enabled() and not x.requires_grad
    if lowest:
        x.requires_grad_()  # nothing below is trained: nobody reads its gradient, but the layer's backward must run
    return _Layer.apply(x, weights, shape, groups, dropout, only, lowest)  # type: ignore[no-any-return,no-untyped-call]


def _answered(
    x: Tensor, w: LayerProducts, shape: LayerShape, groups: tuple[Group, ...], dropout: Dropout | None,
    only: Tensor | None,
) -> Tensor:  # fmt: skip
    """Run a layer that nothing is kept of."""
    residual, queries, p = x, None, shape.hidden_dropout
    if only is None:
        qkv = w.qkv(x)
    else:
        residual = x.index_select(0, only)
        query, others = w.query_and_others
        queries, qkv = query(residual), others(x)
    context, _ = _attend(qkv, queries, shape, groups, dropout, keep=False)

    def normed(out: Tensor, residual: Tensor, which: int) -> Tensor:
        z = _dropped(out, residual, dropout.mask(out.shape, p, out) if dropout else None, p)
        return functional.layer_norm(z, z.shape[1:], *w.norms[which], shape.epsilon)

    y = normed(w.attention(context), residual, 0)
    return normed(w.down(w.up(y, gelu=True)), y, 1)


def _dropped(out: Tensor, residual: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """Return what is left of ``out`` (which is overwritten where all is), and the residual."""
    if mask is None:
        return out.add_(residual)
    return torch.addcmul(residual, out, mask, value=1.0 / (1.0 - Dropout.rounded(p)))


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: LayerWeights,
        shape: LayerShape,
        groups: tuple[Group, ...],
        dropout: Dropout | None,
        only: Tensor | None,
        lowest: bool,
    ) -> Tensor:
        ctx.lowest = lowest
        p_hidden = shape.hidden_dropout if dropout else 0.0
        queries: Tensor | None = None
        residual = x if only is None else x.index_select(0, only)
        if only is None:
            qkv = torch.addmm(w.qkv[1], x, w.qkv[0].t())  # (tokens, 3 hidden)
        else:
            hidden = x.shape[1]
            queries = torch.addmm(w.qkv[1][:hidden], residual, w.qkv[0][:hidden].t())
            qkv = torch.addmm(w.qkv[1][hidden:], x, w.qkv[0][hidden:].t())  # (tokens, 2 hidden)
        context, saved = _attend(qkv, queries, shape, groups, dropout, keep=x.requires_grad)
        y1, mask1, norm1 = _add_norm(context, w.attention, residual, w.norms[0], shape, p_hidden, dropout)
        u = torch.addmm(w.up[1], y1, w.up[0].t())
        g = functional.gelu(u)
        y2, mask2, norm2 = _add_norm(g, w.down, y1, w.norms[1], shape, p_hidden, dropout)
        ctx.parts = (
            x,
            residual,
            w,
            shape,
            groups,
            only,
            context,
            saved,
            mask1,
            norm1,
            y1,
            u,
            g,
            mask2,
            norm2,
            p_hidden,
        )
        return y2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, residual, w, shape, groups, only, context, saved, mask1, norm1, y1, u, g, mask2, norm2, p = ctx.parts
        ctx.parts = None  # frees the saved tensors as soon as they are used up
        scale = 1.0 / (1.0 - Dropout.rounded(p))
        # second half: norm, dropout, down, gelu, up
        dz = _norm_backward(gradient, norm2, w, 1)
        dd = dz if mask2 is None else dz * mask2
        w.write_linear(3, dd, g, scale)
        du = aten.gelu_backward(_scaled_product(dd, w.down[0], scale), u)
        w.write_linear(2, du, y1)
        dy1 = torch.addmm(dz, du, w.up[0])
        # first half: norm, dropout, output projection, attention, projections
        dz = _norm_backward(dy1, norm1, w, 0)
        da = dz if mask1 is None else dz * mask1
        w.write_linear(1, da, context, scale)
        dqkv, dqueries = _attend_backward(
            _scaled_product(da, w.attention[0], scale), saved, shape, groups, len(x), separate=only is not None
        )
        if only is None:
            w.write_linear(0, dqkv, x)
            dx = None if ctx.lowest else torch.addmm(dz, dqkv, w.qkv[0])
        else:
            assert dqueries is not None
            hidden = x.shape[1]
            w.write_linear(0, dqkv, x, at=slice(hidden, None))
            w.write_linear(0, dqueries, residual, at=slice(0, hidden))
            dx = None if ctx.lowest else torch.mm(dqkv, w.qkv[0][hidden:])
            if dx is not None:
                dx.index_add_(0, only, torch.addmm(dz, dqueries, w.qkv[0][:hidden]))
        return dx, None, None, None, None, None, None


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    return torch.mm(a, b) if scale == 1.0 else torch.addmm(b.new_zeros(1), a, b, beta=0.0, alpha=scale)


def _add_norm(
    inputs: Tensor,
    linear: tuple[Tensor, Tensor],
    residual: Tensor,
    norm: tuple[Tensor, Tensor],
    shape: LayerShape,
    p: float,
    dropout: Dropout | None,
) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """Linear, dropout, residual, layer norm; also returns the mask and what the backward needs."""
    out = torch.addmm(linear[1], inputs, linear[0].t())
    mask = dropout.mask(out.shape, p, out) if dropout else None
    z = _dropped(out, residual, mask, p)
    y, mean, rstd = torch.native_layer_norm(z, (z.shape[1],), norm[0], norm[1], shape.epsilon)
    return y, mask, (z, mean, rstd)


def _norm_backward(gradient: Tensor, saved: tuple[Tensor, ...], w: LayerWeights, which: int) -> Tensor:
    z, mean, rstd = saved
    scale, bias = w.norms[which]
    dz, dscale, dbias = aten.native_layer_norm_backward(
        gradient.contiguous(), z, (z.shape[1],), mean, rstd, scale, bias, [True, True, True]
    )
    write(w.weights, w.norm_gradients[which][0], dscale)
    write(w.weights, w.norm_gradients[which][1], dbias)
    return dz  # type: ignore[no-any-return]


def _heads(flat: Tensor, group: Group, parts: int, heads: int) -> Tensor:
    """(tokens, parts * hidden) -> (parts, rows, heads, length, dim), a copy."""
    tokens = flat[group.start : group.stop] if group.padded is None else flat.index_select(0, group.padded)
    return tokens.view(group.rows, group.length, parts, heads, -1).permute(2, 0, 3, 1, 4).contiguous()


def _attend(
    qkv: Tensor,
    queries: Tensor | None,
    shape: LayerShape,
    groups: tuple[Group, ...],
    dropout: Dropout | None,
    *,
    keep: bool,
) -> tuple[Tensor, list[tuple[Tensor | None, ...]]]:
    """softmax(Q K^T / sqrt(d)) V, group by group. Returns (tokens or rows, hidden) and the saved parts."""
    hidden = qkv.shape[1] // (3 if queries is None else 2)
    scale = (hidden // shape.heads) ** -0.5
    context = torch.empty((len(qkv) if queries is None else len(queries), hidden), dtype=qkv.dtype, device=qkv.device)
    if queries is None:
        context[groups[-1].stop :] = 0.0  # places behind the last row: read by nobody, but they must be finite
    saved: list[tuple[Tensor | None, ...]] = []
    row = 0
    for group in groups:
        if queries is None:
            q, k, v = _heads(qkv, group, 3, shape.heads)
        else:
            k, v = _heads(qkv, group, 2, shape.heads)
            q = queries[row : row + group.rows].view(group.rows, shape.heads, 1, -1)
        if not (keep or dropout) and queries is None and group.length >= VECTOR:  # torch's kernel is quicker
            bias = None if group.bias is None else group.bias.to(q.dtype)
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
            mask = probabilities = None
        else:
            q = q * scale
            scores = torch.matmul(q, k.transpose(-1, -2))  # (rows, heads, length or 1, length)
            if group.bias is not None:
                scores = scores.add_(group.bias.to(scores.dtype))
            probabilities = softmax(scores)
            mask = dropout.mask(scores.shape, shape.attention_dropout, scores) if dropout else None
            out = torch.matmul(probabilities if mask is None else probabilities * mask, v)
        if mask is not None:
            out.mul_(1.0 / (1.0 - Dropout.rounded(shape.attention_dropout)))
        flat = out.transpose(1, 2).reshape(-1, hidden)
        if queries is not None:
            context[row : row + group.rows] = flat
        else:
            context[group.start : group.stop] = flat if group.valid is None else flat.index_select(0, group.valid)
        saved.append((q, k, v, probabilities, mask))
        row += group.rows
    return context, saved


def _attend_backward(
    gradient: Tensor,
    saved: list[tuple[Tensor | None, ...]],
    shape: LayerShape,
    groups: tuple[Group, ...],
    places: int,
    *,
    separate: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of the projections, (tokens, parts * hidden), and of separate queries."""
    hidden = gradient.shape[1]
    scale = (hidden // shape.heads) ** -0.5
    parts = 2 if separate else 3
    dqkv = torch.empty((places, parts * hidden), dtype=gradient.dtype, device=gradient.device)
    dqkv[groups[-1].stop :] = 0.0
    dqueries = torch.empty_like(gradient) if separate else None
    row = 0
    for group, (q, k, v, probabilities, mask) in zip(groups, saved, strict=True):
        assert q is not None
        assert k is not None
        assert v is not None
        assert probabilities is not None
        if dqueries is not None:
            dout = gradient[row : row + group.rows].view(group.rows, shape.heads, 1, -1)
        else:
            tokens = gradient[group.start : group.stop]
            if group.valid is not None:
                tokens = gradient.new_zeros(group.rows * group.length, hidden).index_copy_(0, group.valid, tokens)
            dout = tokens.view(group.rows, group.length, shape.heads, -1).transpose(1, 2)
        if mask is not None:
            dout = dout * (1.0 / (1.0 - Dropout.rounded(shape.attention_dropout)))
        dropped = probabilities if mask is None else probabilities * mask
        dv = torch.matmul(dropped.transpose(-1, -2), dout)
        dp = torch.matmul(dout, v.transpose(-1, -2))
        if mask is not None:
            dp.mul_(mask)
        ds = softmax_backward(dp, probabilities)
        dq = torch.matmul(ds, k).mul_(scale)
        dk = torch.matmul(ds.transpose(-1, -2), q)
        if dqueries is not None:
            dqueries[row : row + group.rows] = dq.reshape(group.rows, hidden)
        _put_heads(dqkv, group, (dk, dv) if dqueries is not None else (dq, dk, dv))
        row += group.rows
    return dqkv, dqueries


def _put_heads(flat: Tensor, group: Group, values: tuple[Tensor, ...]) -> None:
    """Write (rows, heads, length, dim) parts back to (tokens, parts * hidden), leaving padding out."""
    rows, heads, length, dim = values[0].shape
    if group.valid is None:
        place = flat[group.start : group.stop].view(rows, length, len(values), heads, dim)
        for i, value in enumerate(values):
            place[:, :, i] = value.transpose(1, 2)
        return
    stacked = torch.stack([value.transpose(1, 2) for value in values], dim=2)
    flat[group.start : group.stop] = stacked.view(rows * length, -1).index_select(0, group.valid)
