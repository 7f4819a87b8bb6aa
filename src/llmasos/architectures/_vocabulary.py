"""Cross entropy over a vocabulary, in pieces where the logits of all places would not fit into memory.

A vocabulary of 150,000 words makes 600 KB of logits for a single token. They are computed for some places
at a time and, in training, computed again for the backward pass, so that never more than a piece exists.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .base import Projected

PIECE = 1 << 25
"""Logits held at once: 128 MB in float32."""


def cross_entropy(outputs: Tensor | Projected, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the summed cross entropy. outputs: logits, (places, vocabulary), or what they come from."""
    if isinstance(outputs, Tensor):
        return functional.cross_entropy(outputs.float(), targets, label_smoothing=smoothing, reduction="sum")
    hidden, head, _ = outputs

    def piece(states: Tensor, wanted: Tensor) -> Tensor:
        return functional.cross_entropy(head(states).float(), wanted, label_smoothing=smoothing, reduction="sum")

    size = max(1, PIECE // outputs.vocabulary)
    if len(hidden) <= size:
        return piece(hidden, targets)
    total = hidden.new_zeros((), dtype=torch.float32)
    for states, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True):
        total = total + checkpoint(piece, states, wanted, use_reentrant=False)
    return total


def token_scores(outputs: Tensor | Projected, targets: Tensor) -> Tensor:
    """Return the negative log probability of each place's target, and whether it was the likeliest, (places, 2)."""
    if isinstance(outputs, Tensor):
        outputs = Projected(outputs, lambda logits: logits, outputs.shape[-1])
    parts = []
    size = max(1, PIECE // outputs.vocabulary)
    for states, wanted in zip(torch.split(outputs.hidden, size), torch.split(targets, size), strict=True):
        logits = outputs.head(states).float()
        loss = functional.cross_entropy(logits, wanted, reduction="none")
        parts.append(torch.stack([loss, (logits.argmax(-1) == wanted).float()], dim=1))
    return torch.cat(parts) if parts else outputs.hidden.new_zeros(0, 2)
