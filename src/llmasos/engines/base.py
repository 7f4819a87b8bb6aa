"""What runs a model for prediction and evaluation: batches of encoded rows in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.batching import Batch


class Engine(Protocol):
    """A loaded model. The answer for a row must not depend on the rows beside it."""

    how: str
    """In words: precision and path, with the reason."""
    at_once: int
    """Batches that are computed side by side, one in each process."""

    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """Return the model's outputs in the batch's order: (sequences, ...), or for output "token" (tokens, ...).

        For output "vocabulary" they are, of each supervised token, minus the logarithm of the probability that
        it was given, and whether it was the most likely one: (supervised tokens, 2). Where the task asks for
        the ``likeliest`` tokens, their ids and the logarithms of their probabilities follow, (..., 2 + 2 x likeliest).
        """

    def together(self, batches: Sequence[Batch]) -> Sequence[NDArray[np.float32]]:
        """Return the outputs of up to ``at_once`` batches."""


class Stepper(Protocol):
    """A loaded model that writes token by token, in numpy alone; ``decoders/base.py`` has the same in torch.

    A row's logits must not depend on the rows beside it.
    """

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> NDArray[np.float32]:
        """Read prompts, with room for so many more tokens each; return the first logits, (prompts, vocabulary)."""

    def step(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append one token to each row, (rows,); return the next logits, (rows, vocabulary)."""

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows, in this order."""


class Author(Protocol):
    """What the export gate asks of an engine whose model writes its answers; ``_writing.py`` makes one of a Stepper."""

    def forced(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, start: int | None = None
    ) -> list[NDArray[np.float32]]:
        """Score answers, token by token.

        Returns minus the logarithm of the probability that the token was given after the prompt and the tokens before
        it, and whether it was the likeliest: (tokens, 2) for each answer.

        ``start``: what the decoder of an encoder-decoder model starts from, if not the model's own.
        """

    def greedy(
        self, prompts: Sequence[Sequence[int]], most: int, ends: Sequence[int], *, first: int | None = None,
        start: int | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Write the likeliest tokens after each prompt, up to one of ``ends`` (left out), ``most`` at most.

        ``first``: what the answer must begin with, as the language of a multilingual translator.
        """


def few(batch: Batch, rows: int = 4) -> Batch:
    """Return a few sequences of a batch, and short beginnings of them: enough to compare two ways to compute.

    The beginnings have many lengths, so that the padded groups of a packed forward are compared too,
    whatever rows come first. Targets that are sequences are cut alike.
    """
    offsets = batch.offsets
    whole = np.unique(np.linspace(0, len(batch.lengths) - 1, min(rows, len(batch.lengths))).astype(int))
    picks = np.concatenate([whole, np.resize(whole, 8)])
    lengths = np.minimum(batch.lengths[picks], [*batch.lengths[whole], *range(9, 1, -1)]).astype(np.int32)
    order = np.argsort(-lengths, kind="stable")
    picks, lengths = picks[order], lengths[order]
    places = np.concatenate([np.arange(a, a + n) for a, n in zip(offsets[picks], lengths, strict=True)])
    targets, ends = None, None
    if batch.targets is not None and batch.target_lengths is not None:
        starts = np.cumsum(batch.target_lengths) - batch.target_lengths
        aligned = np.array_equal(batch.target_lengths, batch.lengths)
        ends = lengths if aligned else np.minimum(batch.target_lengths[picks], lengths + 3).astype(np.int32)
        targets = np.concatenate([batch.targets[a : a + n] for a, n in zip(starts[picks], ends, strict=True)])
    return Batch(
        batch.ids[places],
        None if batch.types is None else batch.types[places],
        lengths,
        picks,
        targets,
        ends,
    )
