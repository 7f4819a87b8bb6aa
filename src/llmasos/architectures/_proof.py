"""Prove that a packed forward computes what transformers computes, on real rows, before it is used.

Both run in float32 without dropout. The tolerance covers the order of summation alone (float32 has
about seven digits; sums over a few thousand products lose two or three of them), so a wrong formula
cannot pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.batching import Batch
from ._plain import transformers_outputs
from .base import Architecture, Projected, Snapshot, pack

TOLERANCE = 1e-3


class Proof(NamedTuple):
    """The largest differences, relative to the largest value compared; ``error`` if one could not be computed."""

    logits: float
    gradients: float
    error: str = ""

    @property
    def holds(self) -> bool:
        """Whether both are within the tolerance (a NaN is not)."""
        return self.logits <= TOLERANCE and self.gradients <= TOLERANCE

    @property
    def why_not(self) -> str:
        """Why the packed forward is not used, in words."""
        if self.error:
            return f"the packed forward fails on this model ({self.error}) and is not used"
        return (
            f"the packed forward differs from transformers' own (logits {self.logits:.1e}, gradients "
            f"{self.gradients:.1e}) and is not used"
        )


def prove(
    model: nn.Module,
    architecture: Architecture,
    batch: Batch,
    pad_id: int,
    output: str,
    *,
    gradients: bool = False,
) -> Proof:
    """Compare outputs, and if asked for every gradient of a sum over them, of both forwards on a few rows.

    What goes wrong in the packed forward itself does not end anything: the proof then does not hold.
    """
    was_training = model.training
    model.eval()
    trained = [p for p in model.parameters() if p.requires_grad] if gradients else []
    held = [(p, p.grad) for p in trained]
    for p in trained:
        p.grad = None
    try:
        with torch.set_grad_enabled(gradients):
            expected = _logits(transformers_outputs(model, batch, pad_id, output))
            wanted = torch.autograd.grad(_sum(expected), trained, allow_unused=True) if gradients else ()
            weights = _Recorder() if gradients else Snapshot(torch.float32)
            device = next(model.parameters()).device
            try:
                logits = _logits(architecture.forward(model, weights, output)(pack(batch, device, output)))
                if gradients:
                    _sum(logits).backward()  # type: ignore[no-untyped-call]
            except Exception as error:  # a model of a shape that nobody foresaw: transformers' own forward serves it
                return Proof(float("nan"), float("nan"), f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
        got = [weights.recorded(p) for p in trained] if isinstance(weights, _Recorder) else []
    finally:
        for p, gradient in held:
            p.grad = gradient
        model.train(was_training)
    largest = max((w.abs().max().item() for w in wanted if w is not None), default=1.0)
    worst = max((_gap(w, g, largest) for w, g in zip(wanted, got, strict=True)), default=0.0)
    return Proof(_gap(expected.detach(), logits.detach(), 1e-6), worst)


def _logits(outputs: Tensor | Projected) -> Tensor:
    return (outputs.head(outputs.hidden) if isinstance(outputs, Projected) else outputs).float()


def _sum(outputs: Tensor) -> Tensor:
    """Weigh all outputs differently, so that no error in one makes up for an error in another."""
    weights = torch.cos(torch.arange(outputs.numel(), device=outputs.device, dtype=outputs.dtype))
    return (outputs * weights.view_as(outputs)).sum() / len(outputs)


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
        kept, own = self._kept.get(id(parameter)), parameter.grad
        return kept + own if kept is not None and own is not None else own if kept is None else kept
