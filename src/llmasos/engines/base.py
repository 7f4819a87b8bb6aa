"""What runs a model for prediction and evaluation: batches of encoded rows in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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

    A row's logits must not depend on the rows beside it. One that ``joins`` also has ``join``, as decoders do. One
    whose model has an encoder also has ``start``: what its decoder starts from, None for the model's own.
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


@dataclass(frozen=True)
class Search:
    """How an engine shall write that chooses tokens itself.

    Args:
        most: tokens of an answer, ``first`` and ``forced_end`` among them.
        ends: ids that end an answer.
        first: what it must begin with.
        start: what the decoder starts from, if not the model's own.
        forced_end: what is put behind an answer that has no room to end.
        least: tokens before an answer may end.
        never: sequences that must not be written.
        no_repeat: how long a sequence must not come twice; 0 for any.
        repetition_penalty: above 1 makes tokens that were there already less likely.
        beams: texts searched side by side; 1 takes the likeliest token.
        length_penalty: the power of its length by which the logarithm of an answer's probability is divided.
        early_stopping: whether beams stop as soon as as many texts as beams have ended.
        at_once: prompts written to together.
    """

    most: int
    ends: tuple[int, ...]
    first: int | None = None
    start: int | None = None
    forced_end: int | None = None
    least: int = 0
    never: tuple[tuple[int, ...], ...] = ()
    no_repeat: int = 0
    repetition_penalty: float = 1.0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    at_once: int = 32


class Found(NamedTuple):
    """The tokens of an answer, without what ended it, and whether it ended by itself."""

    tokens: list[int]
    ended: bool


class Searcher(Author, Protocol):
    """An engine that chooses the tokens of an answer itself, and has no ``Stepper``."""

    how: str
    searches: bool
    """Always true: by this it is told from a ``Stepper``."""

    def search(self, prompts: Sequence[Sequence[int]], search: Search) -> list[Found]:
        """Write an answer to each prompt, in order. A greedy answer must not depend on the prompts beside it."""


@dataclass(frozen=True)
class Choice:
    """How an engine that batches by itself shall choose the tokens of an answer.

    Args:
        most: tokens of the answer, what ends it among them.
        ends: ids that end it.
        temperature: 0 takes the likeliest token.
        top_p, top_k, min_p: what is drawn from, in the words of ``GenerateConfig``.
        repetition_penalty: above 1 makes tokens that were there already less likely.
        seed: what draws are made from.
    """

    most: int
    ends: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0


class News(NamedTuple):
    """What an engine has written to a request since it was asked last.

    ``tokens`` may hold what ended the answer. ``reason``: "stop" or "length" where the engine is done with it, else
    empty. ``error``: why there will be no more, where it failed alone.
    """

    number: int
    tokens: Sequence[int]
    reason: str = ""
    error: Exception | None = None


class Batcher(Protocol):
    """An engine that chooses tokens and batches requests by itself: who asks says what joins and what is dropped.

    A greedy answer must not depend on the requests beside it. Where the engine cannot go on, every method raises
    ``UnavailableError``; it is then as if nothing had joined. One that computes in other processes than this also has
    ``bytes_outside``: the memory that they hold.
    """

    how: str
    """In words: precision and runtime."""
    batches: bool
    """Always true: by this it is told from a ``Stepper``."""
    takes: frozenset[str]
    """The options of ``GenerateConfig`` that it honours."""

    def join(self, number: int, prompt: Sequence[int], choice: Choice) -> None:
        """Begin with a request, under a number that no other under way has."""

    def step(self) -> list[News]:
        """Write on, a token to each request or as far as the engine is; come back within a tenth of a second or so."""

    def drop(self, number: int) -> None:
        """Give up a request: nothing is computed for it any more, and there is no more news of it."""

    def close(self) -> None:
        """End the engine."""


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
