"""Transformers' own forward on a padded batch, read where the task reads it.

The heads are transformers' own modules too. What a task does not read is not computed: a forward hook on
the base model hands the head only the positions that are supervised, which no model class has to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.batching import Batch, pad
from ..tasks.base import IGNORED


def transformers_outputs(model: nn.Module, batch: Batch, pad_id: int, output: str) -> Tensor:
    """Run transformers' own forward. Returns what ``Task.output`` says, in the batch's order."""
    device = next(model.parameters()).device
    inputs = {name: torch.from_numpy(value).to(device) for name, value in pad(batch, pad_id).items()}
    inside = inputs["attention_mask"].bool()
    if output == "row":
        return model(**inputs).logits  # type: ignore[no-any-return]
    if output == "embedding":
        hidden = model(**inputs).last_hidden_state
        mask = inside[..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)  # type: ignore[no-any-return]
    if output == "token":
        return token_logits(model(**inputs))[inside]
    places = supervised(batch, device)
    at = inside.reshape(-1).nonzero().squeeze(1)[places]

    def only(hidden: Tensor) -> Tensor:
        return hidden.flatten(0, 1).index_select(0, at)[None]

    with base_output(model, only):
        return model(**inputs).logits.squeeze(0)  # type: ignore[no-any-return]


def token_logits(out: Any) -> Tensor:
    """Return one line of logits per token; a head for answers has two, for the start and the end."""
    if hasattr(out, "start_logits"):
        return torch.stack([out.start_logits, out.end_logits], dim=-1)
    return out.logits  # type: ignore[no-any-return]


def supervised(batch: Batch, device: torch.device | str) -> Tensor:
    """Return the places, among the batch's tokens, where the targets ask for something."""
    assert batch.targets is not None
    return torch.from_numpy(np.flatnonzero(batch.targets != IGNORED)).to(device)


@contextmanager
def base_output(model: Any, change: Any) -> Iterator[None]:
    """Let the model's head see ``change(last hidden state)`` of the base model."""

    def hook(_module: nn.Module, _inputs: Any, out: Any) -> Any:
        if isinstance(out, tuple):
            return (change(out[0]), *out[1:])
        out.last_hidden_state = change(out.last_hidden_state)
        return out

    handle = model.base_model.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
