"""Cross entropy over a vocabulary, in pieces where the logits of all places would not fit into memory.

A vocabulary of 150,000 words makes 600 KB of logits for a single token. They are computed for some places at a time,
so that never more than a piece exists. In training, where the head is a plain matrix, the gradients are found with the
loss; else a piece is computed again for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .base import IGNORED

if TYPE_CHECKING:
    from ..data.batching import Batch


class Projected(NamedTuple):
    """Logits over a large vocabulary, not yet computed: hidden states, (places, width), and the head for them.

    ``matrix`` is there where the head is a product with it, (vocabulary, width), and nothing else but ``shift``, which
    is added to the logits and not trained, (vocabulary,).
    """

    hidden: Tensor
    head: Callable[[Tensor], Tensor]
    vocabulary: int
    matrix: Tensor | None = None
    shift: Tensor | None = None


PIECE = 1 << 25
"""Logits held at once: 128 MB in float32."""


def asked_targets(outputs: Tensor | Projected, batch: Batch) -> Tensor:
    """Return the target of every place that is asked, where the outputs are."""
    targets = batch.target_tensor((outputs if isinstance(outputs, Tensor) else outputs.hidden).device)
    return targets[targets != IGNORED]


def cross_entropy(outputs: Tensor | Projected, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the summed cross entropy. outputs: logits, (places, vocabulary), or what they come from."""
    if isinstance(outputs, Projected) and outputs.matrix is not None and torch.is_grad_enabled():
        return _LinearEntropy.apply(outputs.hidden, outputs.matrix, outputs.shift, targets, smoothing)  # type: ignore[no-any-return,no-untyped-call]
    return torch.stack([part.sum() for part in _losses(outputs, targets, smoothing)]).sum()


def log_probabilities(outputs: Tensor | Projected, targets: Tensor) -> Tensor:
    """Return the log probability of each place's target, (places,)."""
    return -torch.cat(_losses(outputs, targets, 0.0))


class _LinearEntropy(torch.autograd.Function):
    """The summed cross entropy of a linear head, with its gradients found on the way, a few places at a time.

    With p = softmax(W h + b) the gradient of a place's loss at its logits is p - q, where q is 1 - s at the target plus
    s / vocabulary everywhere (s: the smoothing); so no logits are kept, and none are computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, matrix: Tensor, shift: Tensor | None, targets: Tensor, smoothing: float
    ) -> Tensor:
        head, vocabulary = matrix.to(hidden.dtype), len(matrix)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        to_hidden = torch.empty_like(hidden)
        to_matrix = torch.zeros_like(matrix) if matrix.requires_grad else None
        size = max(_LEAST, _CACHED // vocabulary) // _GRAIN * _GRAIN
        for start in range(0, len(hidden), size):
            here = slice(start, start + size)
            wanted = targets[here, None]
            count = len(wanted)
            states = functional.pad(hidden[here], (0, 0, 0, -count % _GRAIN))
            logits = torch.mm(states, head.t()).float()
            chances = (logits if shift is None else logits.add_(shift)).log_softmax(-1)
            total -= (1.0 - smoothing) * chances[:count].gather(1, wanted).sum()
            if smoothing:
                total -= smoothing * chances[:count].mean(-1).sum()
            slope = chances.exp_()
            slope[:count].scatter_add_(1, wanted, slope.new_full(wanted.shape, smoothing - 1.0))
            slope = (slope.sub_(smoothing / vocabulary) if smoothing else slope).to(hidden.dtype)
            to_hidden[here] = torch.mm(slope, head)[:count]
            if to_matrix is not None:
                to_matrix += torch.mm(slope.t(), states)  # what fills states up is zero
        ctx.parts = (to_hidden, to_matrix)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        to_hidden, to_matrix = ctx.parts
        ctx.parts = None
        return to_hidden.mul_(gradient), None if to_matrix is None else to_matrix.mul_(gradient), None, None, None


_LEAST, _CACHED, _GRAIN = 256, 1 << 22, 32
"""Places at a time: as many as keep 16 MB of logits, but enough for the product, and a multiple, so that its shapes
recur."""


def _losses(outputs: Tensor | Projected, targets: Tensor, smoothing: float) -> list[Tensor]:
    """Return the cross entropy of each place, piece by piece."""

    def entropy(logits: Tensor, wanted: Tensor) -> Tensor:
        logits = logits if logits.dtype.itemsize >= 4 else logits.float()
        return functional.cross_entropy(logits, wanted, label_smoothing=smoothing, reduction="none")

    if isinstance(outputs, Tensor):
        return [entropy(outputs, targets)]
    hidden, head = outputs.hidden, outputs.head

    def piece(states: Tensor, wanted: Tensor) -> Tensor:
        return entropy(head(states), wanted)

    size = max(1, PIECE // outputs.vocabulary)
    if len(hidden) <= size:
        return [piece(hidden, targets)]
    pieces = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    return [checkpoint(piece, states, wanted, use_reentrant=False) for states, wanted in pieces]


def token_scores(outputs: Tensor | Projected, targets: Tensor, likeliest: int = 0) -> Tensor:
    """Return the negative log probability of each place's target, and whether it was the likeliest, (places, 2).

    With ``likeliest``, the ids of so many likeliest tokens follow, and the logarithms of their probabilities.
    """
    if isinstance(outputs, Tensor):
        outputs = Projected(outputs, lambda logits: logits, outputs.shape[-1])
    parts = []
    size = max(1, PIECE // outputs.vocabulary)
    for states, wanted in zip(torch.split(outputs.hidden, size), torch.split(targets, size), strict=True):
        logits = outputs.head(states).float()
        loss = functional.cross_entropy(logits, wanted, reduction="none")
        columns = [torch.stack([loss, (logits.argmax(-1) == wanted).float()], dim=1)]
        if likeliest:
            best = logits.log_softmax(-1).topk(min(likeliest, logits.shape[-1]), dim=-1)
            columns += [best.indices.float(), best.values]  # ids below 2^24 are exact in float32
        parts.append(torch.cat(columns, dim=1))
    return torch.cat(parts) if parts else outputs.hidden.new_zeros(0, 2 + 2 * likeliest)
