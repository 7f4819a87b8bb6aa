"""Choose the next token: the likeliest, or one drawn from what temperature, top-k, top-p and min-p leave.

The order of the filters is that of transformers: repetition penalty, temperature, top-k, top-p, min-p.
Every request draws from a generator of its own, so that its tokens depend on its seed and not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NEVER = float("-inf")


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; ``temperature`` 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def likeliest(scores: Tensor) -> list[int]:
    """Return the likeliest token of each row, of equal ones the first. scores: (rows, vocabulary)."""
    if scores.device.type == "cpu":  # 0.2 ms instead of 4 ms for 32 rows of 49,152: torch does not vectorise it
        return [int(i) for i in scores.numpy().argmax(-1)]
    return [int(i) for i in scores.argmax(-1)]


def penalized(scores: Tensor, history: Sequence[Sequence[int]], penalties: Sequence[float]) -> Tensor:
    """Make every token of a row's history less likely (Keskar et al. 2019), by the row's penalty; 1 leaves it as it is.

    scores: (rows, vocabulary).
    """
    if all(penalty == 1.0 for penalty in penalties):
        return scores
    scores = scores.clone()
    for row, (ids, penalty) in enumerate(zip(history, penalties, strict=True)):
        if penalty == 1.0:
            continue
        seen = torch.tensor(sorted(set(ids)), device=scores.device)
        old = scores[row, seen]
        scores[row, seen] = torch.where(old < 0, old * penalty, old / penalty)
    return scores


def filtered(scores: Tensor, how: Sampling) -> Tensor:
    """Return logits over the temperature, minus infinity where top-k, top-p or min-p leave a token out."""
    scores = scores / max(how.temperature, 1e-5)  # far below nothing changes any more, and numbers overflow
    if how.top_k:
        least = scores.topk(min(how.top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, NEVER)
    if how.top_p < 1.0:
        scores = _nucleus(scores, how.top_p)
    if how.min_p > 0.0:
        probabilities = scores.softmax(-1)
        least = how.min_p * probabilities.amax(-1, keepdim=True)
        scores = scores.masked_fill(probabilities < least, NEVER)
    return scores


def _nucleus(scores: Tensor, share: float) -> Tensor:
    """Keep the fewest likeliest tokens that hold this share of the probability (Holtzman et al. 2020).

    A vocabulary is sorted in full only where its 256 likeliest tokens do not hold the share.
    """
    probabilities = scores.softmax(-1)
    for count in (min(256, scores.shape[-1]), scores.shape[-1]):
        top = probabilities.topk(count)
        before = top.values.cumsum(-1) - top.values
        if count == scores.shape[-1] or bool((before[:, -1] >= share).all()):
            kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, top.indices, before < share)
            return scores.masked_fill(~kept, NEVER)
    raise AssertionError("the whole vocabulary was looked at")


def drawn(scores: Tensor, generators: Sequence[torch.Generator]) -> list[int]:
    """Draw a token for each row, in float64 and from its own generator."""
    sums = scores.softmax(-1, dtype=torch.float64).cumsum(-1)
    points = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    at = torch.searchsorted(sums, (points.to(sums.device) * sums[:, -1])[:, None], right=True)
    return [int(i) for i in at[:, 0].clamp(max=scores.shape[-1] - 1)]


def generator(seed: int, copy: int = 0) -> torch.Generator:
    """Return the generator of a request; equal prompts of one call differ by ``copy``."""
    return torch.Generator().manual_seed((seed * 1_000_003 + copy) % (1 << 63))
