"""What LoRA (Hu et al. 2021) adds to a product: of several adapters over the same weights, to each row that of its own.

All low-rank parts lie side by side as one product into a few columns, and one back. A row's columns of other adapters
are multiplied by zero, so that rows of any adapters go together, and none is changed by what lies beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def adds(layer: Any) -> bool:
    """Say whether this is peft's layer of plain LoRA over a plain linear layer, and nothing else besides."""
    if (type(layer).__module__, type(layer).__name__) != ("peft.tuners.lora.layer", "Linear"):
        return False
    names = list(layer.active_adapters)
    usual = not (layer.lora_variant or layer.merged or layer.disable_adapters or any(layer.lora_bias.values()))
    return usual and len(names) == 1 and names[0] in layer.lora_A and type(layer.get_base_layer()) is nn.Linear


def under(layer: Any) -> Any:
    """Return the linear layer itself, under an adapter if there is one."""
    return layer.get_base_layer() if adds(layer) else layer


class LowRank:
    """The parts of some models beside one product. (rows, in) -> (rows, out).

    Args:
        members: of each model, the layers that make the product side by side; plain ones add nothing.
        dtype: the precision of the work.
    """

    def __init__(self, members: Sequence[Sequence[Any]], dtype: torch.dtype) -> None:
        downs: list[Tensor] = []
        ups: list[Tensor] = []
        owners: list[int] = []
        for member, layers in enumerate(members):
            sizes = [len(under(layer).weight) for layer in layers]
            for number, layer in enumerate(layers):
                if not adds(layer):
                    continue
                (name,) = layer.active_adapters
                down, part = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
                up = part.new_zeros(sum(sizes), len(down))
                up[sum(sizes[:number]) : sum(sizes[: number + 1])] = part * layer.scaling[name]
                downs.append(down)
                ups.append(up)
                owners += [member] * len(down)
        self.down, self.up = torch.cat(downs).to(dtype), torch.cat(ups, 1).to(dtype)
        # of each member's columns 1, of others' 0: (members, columns)
        self.own = torch.eye(len(members), dtype=dtype, device=self.down.device)[:, owners]

    def __call__(self, x: Tensor, members: Tensor) -> Tensor:
        """Return what each row's own model adds; ``members``: which one it is, (rows,)."""
        return functional.linear(functional.linear(x, self.down).mul_(self.own[members]), self.up)
