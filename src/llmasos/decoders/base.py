"""What writes text token by token: prompts in, the logits of what comes next out, one step after another.

A file beside this one serves a family of models by a step of its own over weights laid out for it; it is
proven on real prompts before it is used (``_proof.py``). Every other model runs transformers' own forward
with transformers' own cache (``_plain.py``). Nothing here chooses tokens: ``generation/`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..core import plugins

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ._prefixes import Prefixes


class Decoder(Protocol):
    """Sequences under way. A row's logits must not depend on the rows beside it."""

    how: str
    """In words: precision and path, with the reason."""
    start: int | None
    """What an encoder-decoder model writes on from; None is the model's own."""
    prefixes: Prefixes | None
    """What was read before, where it is to be kept."""
    members: Sequence[int] | None
    """Of a decoder of several models, which of them computes each of the next prompts; None is the first."""

    @property
    def joins(self) -> bool:
        """Whether prompts can join those under way; known once there are any."""

    def begin(self, prompts: Sequence[Sequence[int]], room: int, salts: Sequence[str] | None = None) -> Tensor:
        """Read prompts, with room for so many more tokens each; what was under way before is forgotten.

        ``salts``: of each prompt, whose beginnings it may share, where the decoder keeps ``prefixes``; None for none.

        Returns:
            (prompts, vocabulary), float32: logits of the first token.
        """

    def join(
        self, prompts: Sequence[Sequence[int]], room: int, rows: Sequence[int], salts: Sequence[str] | None = None
    ) -> Tensor:
        """Read more prompts, beside those under way, into these rows: of answers that have ended, or behind the last.

        Returns:
            (prompts, vocabulary), float32: logits of their first token.
        """

    def step(self, ids: Tensor) -> Tensor:
        """Append one token to each row, (rows,). Returns (rows, vocabulary), float32."""

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, in this order: some have ended, or beams branch."""


def cache_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return how keys and values are kept for a step: in float32 on a processor, whatever the precision of the work.

    There torch (2.13) multiplies one query with them in bfloat16 several times slower, which was half of a step of many
    rows.
    """
    import torch

    return torch.float32 if device.type == "cpu" else dtype


class Alone:
    """A decoder whose prompts begin and end together."""

    joins: bool = False
    prefixes: Prefixes | None = None
    members: Sequence[int] | None = None

    def join(
        self, prompts: Sequence[Sequence[int]], room: int, rows: Sequence[int], salts: Sequence[str] | None = None
    ) -> Tensor:
        """Refuse; whoever calls this has not asked whether it ``joins``."""
        raise NotImplementedError


class Family(Protocol):
    """Models for which there is a step here."""

    def reason_against(self, model: nn.Module) -> str | None:
        """Return why this model cannot be served, or None if it can."""

    def bind(self, model: nn.Module, dtype: torch.dtype, others: Sequence[nn.Module] = ()) -> Decoder:
        """Return a decoder over the model's weights in this precision; the model itself stays as it is.

        ``others``: models over the same weights, with adapters of their own, which are its further ``members``.
        """


def find(model: nn.Module) -> tuple[Family | None, str]:
    """Return the family that serves a model, or None, with the reason in words."""
    reasons = []
    for name in plugins.names("decoders"):
        family: Family = plugins.load("decoders", name)
        reason = family.reason_against(model)
        if reason is None:
            return family, f"decode step of decoders/{name}"
        reasons.append(f"{name}: {reason}")
    return None, "; ".join(reasons)


def open_decoder(model: nn.Module, dtype: torch.dtype, prompts: Sequence[Sequence[int]], *, speed: str) -> Decoder:
    """Return the fastest decoder that is proven to compute what transformers computes on these prompts.

    Args:
        model: in float32, or in ``dtype``.
        dtype: the precision of the work.
        prompts: real ones; a few are enough.
        speed: "auto", or "plain" for transformers' own forward always.
    """
    from ._plain import plain

    family, reason = find(model) if speed == "auto" else (None, "asked for")
    if family is not None:
        decoder, reason = _proven([model], dtype, prompts, family, reason)
        if decoder is not None:
            return decoder
    decoder = plain(model, dtype)
    decoder.how = f"{_name(dtype)}, transformers' forward: {reason}"
    return decoder


class Together(NamedTuple):
    """One decoder of several models: its members are the models at these places."""

    decoder: Decoder
    places: list[int]


def open_together(
    models: Sequence[nn.Module], dtype: torch.dtype, prompts: Sequence[Sequence[int]]
) -> Together | None:  # fmt: skip
    """Return one decoder of the first model and of those that add to its weights, proven for each; None without such.

    Arguments as for ``open_decoder``.
    """
    family, reason = find(models[0])
    weights = {id(one) for one in models[0].parameters()}
    places = [
        place for place, model in enumerate(models)
        if weights <= {id(one) for one in model.parameters()} and find(model)[0] is family
    ]  # fmt: skip
    if family is None or len(places) < 2:
        return None
    decoder, _ = _proven([models[place] for place in places], dtype, prompts, family, reason)
    return None if decoder is None else Together(decoder, places)


def _proven(
    models: Sequence[nn.Module], dtype: torch.dtype, prompts: Sequence[Sequence[int]], family: Family, reason: str
) -> tuple[Decoder | None, str]:
    from ._proof import prove

    proof = prove(models, family, prompts)
    if not proof.holds:
        return None, proof.why_not
    decoder = family.bind(models[0], dtype, models[1:])
    decoder.how = f"{_name(dtype)}, {reason}"
    return decoder, reason


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
