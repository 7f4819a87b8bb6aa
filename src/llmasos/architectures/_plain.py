"""Transformers' own forward on a padded batch, read where the task reads it.

The heads are transformers' own modules too. What a task does not read is not computed: a forward hook on
the base model hands the head only the positions that are supervised, which no model class has to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.hardware import to_device
from ..data.batching import Batch, pad, rectangle
from ..tasks._losses import Projected
from ..tasks.base import IGNORED


def transformers_outputs(model: nn.Module, batch: Batch, pad_id: int, output: str) -> Tensor | Projected:
    """Run transformers' own forward. Returns what ``Task.output`` says, in the batch's order."""
    device = next(model.parameters()).device
    if getattr(model.config, "is_encoder_decoder", False) and output == "vocabulary":
        return _decoded(model, batch, pad_id, device)
    inputs = {name: to_device(value, device) for name, value in pad(batch, pad_id).items()}
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


def _decoded(model: Any, batch: Batch, pad_id: int, device: torch.device) -> Projected:
    """Run an encoder with a decoder: what its head reads, (supervised targets, width), in the batch's order.

    The decoder reads what the model itself makes of the targets, shifted right once. It is not told which
    places are padding: they come last, and no place looks ahead.
    """
    assert batch.targets is not None
    assert batch.target_lengths is not None
    inputs = {name: to_device(value, device) for name, value in pad(batch, pad_id, GRAIN).items()}
    labels, inside = rectangle(batch.targets, batch.target_lengths, IGNORED, GRAIN)
    asked = to_device(np.flatnonzero(inside & (labels != IGNORED)), device)
    given = shifted(model, to_device(labels, device))
    with _products(model, len(labels), max(inputs["input_ids"].shape[1], given.shape[1]), device):
        return head_reads(model, asked, **inputs, decoder_input_ids=given)


def head_reads(model: Any, asked: Tensor, **inputs: Any) -> Projected:
    """Run a model of text, and stop at what its head would make logits from, at the places that are asked."""
    read: list[Tensor] = []

    def hook(_module: nn.Module, states: tuple[Tensor]) -> tuple[Tensor]:
        read.append(states[0].flatten(0, 1).index_select(0, asked))
        return (states[0][:, :0],)  # the logits come with the loss, a few places at a time

    handle = model.get_output_embeddings().register_forward_pre_hook(hook)
    try:
        model(**inputs, use_cache=False)
    finally:
        handle.remove()
    kind = asked.device.type
    return projected(model, read[0], torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)


def projected(model: Any, hidden: Tensor, cast: torch.dtype | None) -> Projected:
    """Leave the logits of a language model's head to whoever reads them. ``cast``: the precision of its product."""
    head = model.get_output_embeddings()
    vocabulary = getattr(head, "out_features", model.config.vocab_size)
    cap = getattr(model.config, "final_logit_softcapping", None)
    shift = getattr(model, "final_logits_bias", None)
    shift = None if shift is None or not shift.any() else shift[0]

    def logits(states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, cast or torch.bfloat16, enabled=cast is not None):
            out = head(states)
        out = out if shift is None else out + shift
        return out if cap is None else cap * torch.tanh(out / cap)  # type: ignore[no-any-return]

    linear = type(head) is nn.Linear and head.bias is None and cap is None
    hidden = hidden if cast is None else hidden.to(cast)
    return Projected(hidden, logits, vocabulary, head.weight if linear else None, shift)


def _products(model: Any, rows: int, longest: int, device: torch.device) -> AbstractContextManager[Any]:
    """Let attention be plain products where that trains faster: on a CPU, while the scores are few.

    The backward pass of torch's own kernel takes a third of a step there: 64 pairs of Multi30k through a Marian of
    width 256 took 0.66 s of processor time with it and 0.46 s without.
    """
    heads = getattr(model.config, "num_attention_heads", 8)
    few = rows * heads * longest**2 <= 1 << 24
    return sdpa_kernel(SDPBackend.MATH) if few and torch.is_grad_enabled() and device.type == "cpu" else nullcontext()


def shifted(model: Any, labels: Tensor) -> Tensor:
    """Return what a decoder reads to give these labels: its first token, then the labels but the last."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)  # type: ignore[no-any-return]
    first = labels.new_full((len(labels), 1), model.config.decoder_start_token_id)  # M2M100 and NLLB
    return torch.cat([first, labels[:, :-1].masked_fill(labels[:, :-1] == IGNORED, model.config.pad_token_id)], dim=1)


GRAIN = 4
"""Lengths are rounded up to a multiple: products of matrices are compiled for their shape, which must recur. Of 4
against 1, a step of 64 pairs of Multi30k took 6 % less time in a third of the shapes; 8 leaves more places empty."""


def token_logits(out: Any) -> Tensor:
    """Return one line of logits per token; a head for answers has two, for the start and the end."""
    if hasattr(out, "start_logits"):
        return torch.stack([out.start_logits, out.end_logits], dim=-1)
    return out.logits  # type: ignore[no-any-return]


def supervised(batch: Batch, device: torch.device | str) -> Tensor:
    """Return the places, among the batch's tokens, where the targets ask for something."""
    assert batch.targets is not None
    return to_device(np.flatnonzero(batch.targets != IGNORED), device)


@contextmanager
def base_output(model: Any, change: Any) -> Iterator[None]:
    """Let the model's head see ``change(last hidden state)`` of the base model (itself, if it has no head)."""

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
