"""Rows of the words' table, whose gradients go straight to where the weights keep them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Weights


def looked_up(ids: Tensor, table: Any, weights: Weights) -> Tensor:
    """Return the words' states, (len(ids), width), in the precision of the work."""
    if not table.weight.requires_grad:
        return weights.rows(table.weight, ids)
    return _Rows.apply(ids, table.weight, table.padding_idx, weights)  # type: ignore[no-any-return,no-untyped-call]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, parameter: Tensor, padding: int | None, weights: Weights) -> Tensor:
        ctx.parts = (ids, parameter, padding, weights)
        return weights.rows(parameter, ids)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ids, parameter, padding, weights = ctx.parts
        if padding is not None and bool((ids == padding).any()):  # torch trains no padding row, not even one in a text
            gradient = gradient.masked_fill((ids == padding)[:, None], 0.0)
        weights.add_rows(parameter, ids, gradient)
        return None, None, None, None
