"""Which parts of a model suffer most from eight bits: what stays in float32 where a quantized artifact loses too much.

Each part alone is computed as eight bits would round it (weights by output channel, inputs by tensor, both symmetric),
and the change of the model's outputs is measured on a few rows. That takes a pass over the rows for each part, and no
export; the artifact itself is judged by the gate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_LAYER = re.compile(r"^(.*?\.\d+)(\.|$)")


def parts(model: nn.Module) -> list[str]:
    """Return the parts that can be kept: each numbered layer, and each matrix outside of them, by module name."""
    found = dict.fromkeys(_part(name) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return list(found)


def ranked(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Return the parts, the one whose rounding changes the outputs most first.

    Args:
        model: a transformers model in evaluation mode.
        batches: what it is run on.
    """
    with torch.no_grad():
        wanted = [_outputs(model, batch) for batch in batches]
        changes = {}
        for part in parts(model):
            with _rounded(model, part):
                found = [_outputs(model, batch) for batch in batches]
            changes[part] = sum(float((a - b).square().sum()) for a, b in zip(found, wanted, strict=True))
    return sorted(changes, key=lambda part: -changes[part])


def _part(name: str) -> str:
    layer = _LAYER.match(name)
    return layer[1] if layer else name


def _outputs(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    found: Any = model(**batch)
    return torch.cat([one.flatten() for one in found.to_tuple() if isinstance(one, Tensor)])


@contextmanager
def _rounded(model: nn.Module, part: str) -> Iterator[None]:
    """Let the matrices of a part compute as eight bits would."""
    chosen = [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and _part(name) == part]
    kept = [module.weight.detach().clone() for module in chosen]
    hooks = [module.register_forward_pre_hook(lambda _, inputs: (_eight(inputs[0]),)) for module in chosen]
    try:
        for module in chosen:
            module.weight.copy_(_eight(module.weight, dim=1))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, weight in zip(chosen, kept, strict=True):
            module.weight.copy_(weight)


def _eight(values: Tensor, dim: int | None = None) -> Tensor:
    """Round to 255 steps between the largest value and its negative."""
    largest = values.abs().amax() if dim is None else values.abs().amax(dim, keepdim=True)
    step = largest.clamp_min(1e-12) / 127.0
    return (values / step).round() * step
