"""The softmax of scores, by whichever of torch's kernels is quicker."""

from __future__ import annotations

import torch
from torch import Tensor

VECTOR = 32
"""Length from which torch's softmax in bfloat16 is vectorised; below, it is quicker through float32."""


def softmax(scores: Tensor) -> Tensor:
    """Return the softmax over the last axis, in the precision of the scores."""
    if scores.shape[-1] < VECTOR:
        return torch.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)
    return torch.softmax(scores, -1)


def softmax_backward(gradient: Tensor, probabilities: Tensor) -> Tensor:
    """Return the gradient of the scores."""
    return torch.ops.aten._softmax_backward_data(gradient, probabilities, -1, gradient.dtype)  # type: ignore[no-any-return]
