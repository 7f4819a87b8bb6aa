"""A linear layer whose weights are laid out for oneDNN once, for models that only answer.

On a processor oneDNN lays weights out in blocks before it multiplies, and ``F.linear`` has it do so at every call: half
of the time at one row. A row's result is the same, up to the last bit of the order of summation, whatever the number
of rows.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional


class Blocked:
    """A linear layer, in blocks where this torch can, else as it is. (rows, in) -> (rows, out).

    Args:
        weight, bias: (out, in) and (out,) or None, in the precision of the work.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.bias, self.blocked = bias, has_blocked(weight.device.type, weight.dtype)
        weight = weight.contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self.blocked else weight

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Return x W^T + b, or its GELU (with the error function), which costs nothing more in blocks."""
        if self.blocked:
            then, how = ("gelu", "none") if gelu else ("none", "")
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, then, [], how)
            return out
        out = functional.linear(x, self.weight, self.bias)
        return functional.gelu(out) if gelu else out


@cache
def has_blocked(device: str, dtype: torch.dtype) -> bool:
    """Try the operator, which is internal to torch, on a small product: it must be there and be right."""
    if device != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x, weight = torch.ones(2, 32, dtype=dtype), torch.eye(32, dtype=dtype)
    try:
        blocked = torch.ops.mkldnn._reorder_linear_weight(weight)
        plain = torch.ops.mkldnn._linear_pointwise(x, blocked, None, "none", [], "")
        gelu = torch.ops.mkldnn._linear_pointwise(x, blocked, None, "gelu", [], "none")
        return torch.equal(plain, x) and torch.allclose(gelu, functional.gelu(x), rtol=1e-2)
    except (AttributeError, RuntimeError, TypeError, NotImplementedError):
        return False
