"""Linear layers side by side for few rows at a time, as fast as memory gives the weights, with adapters over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..architectures._blocked import Blocked
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
        weight = weight.to(dtype)
        self.bytes = weight.numel() * weight.element_size()
        self.product = Blocked(weight, _biases(layers, dtype))

    def __call__(self, x: Tensor, members: Tensor | None = None) -> Tensor:
        """Return x W^T + b, and what is added to it for the model of each row, ``members``, (rows,)."""
        out = self.product(x)
        return out if self.low_rank is None or members is None else out.add_(self.low_rank(x, members))


def _biases(layers: list[Any], dtype: torch.dtype) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    parts = [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    return torch.cat([part.detach() for part in parts]).to(dtype)
