"""What comes out while answers are written; without torch, since a server tells of it that writes nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..tasks.base import Generation

Chances = list[tuple[int, float]]
"""The likeliest tokens at a place, each with the logarithm of its probability, under the model itself."""


class Piece(NamedTuple):
    """Text that has become certain; with the tokens that it is of, and their chances, if they were asked for."""

    number: int
    text: str
    tokens: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    likeliest: Sequence[Chances] = ()


class Done(NamedTuple):
    """A finished answer."""

    number: int
    generation: Generation
