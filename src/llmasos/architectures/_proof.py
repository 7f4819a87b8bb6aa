"""Prove that a packed forward computes what transformers computes, on real rows, before it is used.

Both run in float32 without dropout. The tolerance covers the order of summation alone (float32 has
about seven digits; sums over a few thousand products lose two or three of them), so a wrong formula
cannot pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.batching import Batch, pad
from .base import Architecture, Snapshot, pack

TOLERANCE = 1e-3


class Proof(NamedTuple):
    """The largest differences, relative to the largest value compared."""

    logits: float
    gradients: float

    @property
    def holds(self) -> bool:
        """Whether both are within the tolerance (a NaN is not)."""
        return self.logits <= TOLERANCE and self.gradients <= TOLERANCE


def transformers_logits(model: nn.Module, batch: Batch, pad_id: int) -> Tensor:
    """Run transformers' own forward on a batch, padded. Returns (rows, labels)."""
    device = next(model.parameters()).device
    inputs = {name: torch.from_numpy(value).to(device) for name, value in pad(batch, pad_id).items()}
    return model(**inputs).logits  # type: ignore[no-any-return]


def prove(
    model: nn.Module,
    architecture: Architecture,
    batch: Batch,
    pad_id: int,
    loss: Callable[[Tensor], Tensor] | None = None,
) -> Proof:
    """Compare logits, and with a loss every gradient, of both forwards on a few rows."""
    was_training = model.training
    model.eval()
    trained = [p for p in model.parameters() if p.requires_grad] if loss else []
    held = [(p, p.grad) for p in trained]
    for p in trained:
        p.grad = None
    try:
        with torch.set_grad_enabled(loss is not None):
            expected = transformers_logits(model, batch, pad_id).float()
            wanted = torch.autograd.grad(loss(expected), trained, allow_unused=True) if loss else ()
            weights = _Recorder() if loss else Snapshot(torch.float32)
            device = next(model.parameters()).device
            logits = architecture.forward(model, weights)(pack(batch, device)).float()
            if loss:
                loss(logits).backward()  # type: ignore[no-untyped-call]
        got = [weights.recorded(p) for p in trained] if isinstance(weights, _Recorder) else []
    finally:
        for p, gradient in held:
            p.grad = gradient
        model.train(was_training)
    largest = max((w.abs().max().item() for w in wanted if w is not None), default=1.0)
    worst = max((_gap(w, g, largest) for w, g in zip(wanted, got, strict=True)), default=0.0)
    return Proof(_gap(expected.detach(), logits.detach(), 1e-6), worst)


def _gap(wanted: Tensor | None, got: Tensor | None, floor: float) -> float:
    """Largest difference relative to the largest value, or to a thousandth of ``floor`` if that is larger."""
    if wanted is None and got is None:
        return 0.0
    reference = wanted if wanted is not None else torch.zeros_like(got)  # type: ignore[arg-type]
    other = got if got is not None else torch.zeros_like(reference)
    scale = max(reference.abs().max().item(), 1e-3 * floor)
    return float((reference - other).abs().max()) / scale


class _Recorder(Snapshot):
    """Weights in float32 that remember the gradients left in them."""

    def __init__(self) -> None:
        super().__init__(torch.float32)
        self._kept: dict[int, Tensor] = {}

    def gradient(self, *parameters: Tensor) -> Tensor | None:
        if not parameters[0].requires_grad:
            return None
        place = torch.zeros_like(torch.cat([p.detach() for p in parameters]))
        at = 0
        for p in parameters:
            self._kept[id(p)] = place[at : at + len(p)]
            at += len(p)
        return place

    def add_rows(self, parameter: Tensor, ids: Tensor, gradient: Tensor) -> None:
        kept = self._kept.setdefault(id(parameter), torch.zeros_like(parameter))
        kept.index_add_(0, ids, gradient)

    def recorded(self, parameter: Tensor) -> Tensor | None:
        return self._kept.get(id(parameter), parameter.grad)
