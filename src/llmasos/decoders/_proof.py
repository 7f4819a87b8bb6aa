"""Prove that a decode step computes what transformers computes, on real prompts, before it is used.

In float32, so that a wrong formula cannot hide in rounding: prompts of several lengths are read together,
their last tokens given one by one, and every logit on the way compared with transformers' own forward over
each prompt alone. The tolerance covers the order of summation.
"""

from __future__ import annotations

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
def prove(model: nn.Module, family: Family, prompts: Sequence[Sequence[int]]) -> Proof:
    """Compare on a few prompts, and on beginnings of them."""
    was_training = model.training
    model.eval()
    single = next(model.parameters()).dtype
    texts, device = _few(prompts), next(model.parameters()).device
    try:
        wanted = [model(torch.tensor([ids], device=device)).logits[0].float() for ids in texts]
        decoder = family.bind(model, torch.float32 if single == torch.float32 else single)
        got = _stepped(decoder, texts)
    except Exception as error:  # a model of a shape that nobody foresaw: transformers' own forward serves it
        return Proof(float("nan"), f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
    finally:
        model.train(was_training)
    expected = torch.stack([logits[-STEPS - 1 :] for logits in wanted])
    return Proof(float((expected - got).abs().max() / expected.abs().max().clamp(min=1e-6)))


def _stepped(decoder: Decoder, texts: list[list[int]]) -> Tensor:
    """Return the logits of the last places of each text, (texts, steps + 1, vocabulary)."""
    out = [decoder.begin([ids[:-STEPS] for ids in texts], STEPS)]
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
