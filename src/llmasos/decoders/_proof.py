"""Prove that a decode step computes what transformers computes, on real prompts, before it is used.

In float32, so that a wrong formula cannot hide in rounding: prompts of several lengths are read together,
their last tokens given one by one, and every logit on the way compared with transformers' own forward over
each prompt alone. The tolerance covers the order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .base import Decoder, Family

TOLERANCE = 1e-3
STEPS = 3
"""Tokens of each prompt that are given one by one."""
LONGEST = 48


class Proof(NamedTuple):
    """The largest difference of a logit, relative to the largest logit; ``error`` if it could not be computed."""

    logits: float
    error: str = ""

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance (a NaN is not)."""
        return self.logits <= TOLERANCE

    @property
    def why_not(self) -> str:
        """Why the step is not used, in words."""
        if self.error:
            return f"the decode step fails on this model ({self.error}) and is not used"
        return f"the decode step differs from transformers' own (logits {self.logits:.1e}) and is not used"


@torch.inference_mode()
def prove(models: Sequence[nn.Module], family: Family, prompts: Sequence[Sequence[int]]) -> Proof:
    """Compare on a few prompts, and on beginnings of them; each model of one decoder on all, rows of others beside."""
    were_training = [model.training for model in models]
    own = next(models[0].parameters())
    texts, worst = _few(prompts), 0.0
    try:
        wanted = [[_last(model.eval(), ids, own.device) for ids in texts] for model in models]
        decoder = family.bind(models[0], own.dtype, models[1:])
        for turn in range(len(models)):
            members = [(turn + row) % len(models) for row in range(len(texts))]
            expected = torch.stack([wanted[member][row] for row, member in enumerate(members)])
            worst = max(worst, _apart(expected, _stepped(decoder, texts, members)), key=_size)
    except Exception as error:  # a model of a shape that nobody foresaw: transformers' own forward serves it
        return Proof(float("nan"), f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    finally:
        for model, was in zip(models, were_training, strict=True):
            model.train(was)
    return Proof(worst)


def _last(model: nn.Module, ids: list[int], device: torch.device) -> Tensor:
    """Return transformers' logits of the last places of a text, (steps + 1, vocabulary)."""
    return model(torch.tensor([ids], device=device)).logits[0, -STEPS - 1 :].float()  # type: ignore[no-any-return]


def _apart(expected: Tensor, got: Tensor) -> float:
    return float((expected - got).abs().max() / expected.abs().max().clamp(min=1e-6))


def _size(difference: float) -> float:
    return float("inf") if math.isnan(difference) else difference


def _stepped(decoder: Decoder, texts: list[list[int]], members: list[int]) -> Tensor:
    """Return the logits of the last places of each text, (texts, steps + 1, vocabulary)."""
    decoder.members = members
    out = [decoder.begin([ids[:-STEPS] for ids in texts], STEPS)]
    decoder.members = None
    device = out[0].device
    for back in range(STEPS, 0, -1):
        if back == 2:  # rows come back, and in another order, as beams do
            there = torch.arange(len(texts), device=device).flip(0)
            decoder.select(there)
            decoder.select(there)
        out.append(decoder.step(torch.tensor([ids[-back] for ids in texts], device=device)))
    return torch.stack(out, dim=1)


def _few(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return up to three prompts, cut to several lengths, each longer than the steps."""
    whole = [list(prompt)[:LONGEST] for prompt in prompts[:3]]
    whole = [ids * (-(-(STEPS + 2) // len(ids))) for ids in whole]
    return [*whole, *(ids[: STEPS + 1 + number] for number, ids in enumerate(whole))]
