"""A linear layer for few rows at a time, as fast as memory gives the weights.

On a processor oneDNN lays weights out in blocks before it multiplies, and ``F.linear`` has it do so at every
call: half of the time at one row. Here that is done once. A row's result is the same, up to the last bit of
the order of summation, whatever the number of rows. Elsewhere, and where this torch lacks the operator,
it is ``F.linear``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ._low_rank import LowRank, adds, under


class Linear:
    """Weights of one or more linear layers side by side. (rows, in) -> (rows, sum of outs).

    Args:
        layers: plain, or with what LoRA adds to them.
        dtype: the precision of the work.
        others: of other models over the same weights, the same layers.
    """

    def __init__(self, layers: list[Any], dtype: torch.dtype, others: Sequence[list[Any]] = ()) -> None:
        adapted = any(adds(layer) for member in (layers, *others) for layer in member)
        self.low_rank = LowRank([layers, *others], dtype) if adapted else None
        layers = [under(layer) for layer in layers]
        weights = [layer.weight.detach() for layer in layers]
        weight = torch.cat(weights) if len(weights) > 1 else weights[0]
        self.weight = weight.to(dtype).contiguous()
        self.bytes = self.weight.numel() * self.weight.element_size()
        self.bias = _biases(layers, dtype)
        self.blocked = _has_blocked(self.weight.device.type, dtype)
        if self.blocked:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, x: Tensor, members: Tensor | None = None) -> Tensor:
        """Return x W^T + b, and what is added to it for the model of each row, ``members``, (rows,)."""
        if self.blocked:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        else:
            out = functional.linear(x, self.weight, self.bias)
        return out if self.low_rank is None or members is None else out.add_(self.low_rank(x, members))


def _biases(layers: list[Any], dtype: torch.dtype) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    parts = [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    return torch.cat([part.detach() for part in parts]).to(dtype)


@cache
def _has_blocked(device: str, dtype: torch.dtype) -> bool:
    """Try the operator, which is internal to torch, on a small product: it must be there and be right."""
    if device != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x, weight = torch.ones(2, 32, dtype=dtype), torch.eye(32, dtype=dtype)
    try:
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight)
        return torch.equal(torch.ops.mkldnn._linear_pointwise(x, blocked, None, "none", [], ""), x)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
