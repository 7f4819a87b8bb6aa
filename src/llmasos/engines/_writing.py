"""What follows from an engine that writes step by step: answers scored, answers written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.batching import Batch
from ..tasks.base import IGNORED
from .base import Author, Batcher, Choice, Stepper

if TYPE_CHECKING:
    from torch import Tensor

    from ..decoders.base import Decoder

AT_ONCE = 16
"""Prompts that are written to together."""


def author_of(engine: Any) -> Author:
    """Return what an engine offers the gate: itself, or what follows from its steps."""
    return engine if hasattr(engine, "forced") else Writing(engine)


class Written(NamedTuple):
    """Tokens, and of each what ``Author.forced`` says."""

    tokens: list[int]
    scores: NDArray[np.float32]


class Writing:
    """An ``Author`` by steps: through the same cache by which the model writes for its users."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper

    def forced(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], *, start: int | None = None
    ) -> list[NDArray[np.float32]]:
        """Score answers; see ``Author``."""
        return [one.scores for one in self._run(prompts, max(map(len, answers)), frozenset(), answers, start)]

    def greedy(
        self, prompts: Sequence[Sequence[int]], most: int, ends: Sequence[int], *, first: int | None = None,
        start: int | None = None,
    ) -> list[list[int]]:  # fmt: skip
        """Write the likeliest tokens; see ``Author``."""
        return [one.tokens for one in self.written(prompts, most, ends, first=first, start=start)]

    def written(
        self, prompts: Sequence[Sequence[int]], most: int, ends: Sequence[int], *, first: int | None = None,
        start: int | None = None,
    ) -> list[Written]:  # fmt: skip
        """Write the likeliest tokens, with their scores."""
        begun = [[] if first is None else [first] for _ in prompts]
        return self._run(prompts, most, frozenset(ends), begun, start, goes_on=True)

    def _run(
        self, prompts: Sequence[Sequence[int]], most: int, ends: frozenset[int], given: Sequence[Sequence[int]],
        start: int | None, *, goes_on: bool = False,
    ) -> list[Written]:  # fmt: skip
        out: list[Written] = []
        if hasattr(self._stepper, "start"):
            self._stepper.start = start
        for begin in range(0, len(prompts), AT_ONCE):
            here = slice(begin, begin + AT_ONCE)
            out += self._together(prompts[here], most, ends, given[here], goes_on=goes_on)
        return out

    def _together(
        self, prompts: Sequence[Sequence[int]], most: int, ends: frozenset[int], given: Sequence[Sequence[int]],
        *, goes_on: bool,
    ) -> list[Written]:  # fmt: skip
        """Write what is given to each prompt, and then, if it ``goes_on``, what is likeliest."""
        tokens: list[list[int]] = [[] for _ in prompts]
        scores: list[list[tuple[float, float]]] = [[] for _ in prompts]
        going = [most > 0 and (goes_on or bool(one)) for one in given]
        logits = self._stepper.begin(prompts, most) if any(going) else np.zeros((0, 0), dtype=np.float32)
        while any(going):
            nexts = logits.argmax(axis=1)
            for row, (line, wanted) in enumerate(zip(logits, given, strict=True)):
                place = len(tokens[row])
                if place < len(wanted):
                    nexts[row] = wanted[place]
                if not going[row]:
                    continue  # a row that has ended goes on with anything: nobody looks at it
                if goes_on and place >= len(wanted) and int(nexts[row]) in ends:
                    going[row] = False
                    continue
                tokens[row].append(int(nexts[row]))
                scores[row].append(scored(line, int(nexts[row])))
                going[row] = len(tokens[row]) < (most if goes_on else len(wanted))
            if any(going):
                logits = self._stepper.step(nexts.astype(np.int64))
        lines = [np.asarray(one, dtype=np.float32).reshape(-1, 2) for one in scores]
        return [Written(*both) for both in zip(tokens, lines, strict=True)]


def written_together(
    batcher: Batcher, prompts: Sequence[Sequence[int]], most: int, ends: Sequence[int]
) -> list[list[int]]:
    """Return the likeliest tokens after each prompt, up to one of ``ends``, all prompts written to side by side."""
    found: list[list[int]] = [[] for _ in prompts]
    for number, prompt in enumerate(prompts):
        batcher.join(number, prompt, Choice(most, frozenset(ends)))
    going = set(range(len(prompts)))
    while going:
        for news in batcher.step():
            if news.error is not None:
                raise news.error
            found[news.number] += news.tokens
            going -= {news.number} if news.reason else set()
    return [answer[: next((at for at, token in enumerate(answer) if token in ends), most)] for answer in found]


def score_targets(author: Author, batch: Batch, *, encodes: bool) -> NDArray[np.float32]:
    """Return the outputs of an ``Engine`` for output "vocabulary": what targets ask for, scored by writing it.

    ``encodes``: whether the model has an encoder, which reads the tokens, and a decoder, which writes the targets.
    """
    assert batch.targets is not None
    assert batch.target_lengths is not None
    ids = np.split(batch.ids, batch.offsets[1:-1])
    targets = np.split(batch.targets, np.cumsum(batch.target_lengths)[:-1])
    if encodes:
        prompts, answers = [one.tolist() for one in ids], [one.tolist() for one in targets]
        asked = [np.arange(len(one)) for one in targets]
    else:  # all tokens after the first that is asked about, and those asked about among them
        places = [np.flatnonzero(one != IGNORED) for one in targets]
        firsts = [int(one[0]) if len(one) else len(all_ids) - 1 for one, all_ids in zip(places, ids, strict=True)]
        prompts = [one[: first + 1].tolist() for one, first in zip(ids, firsts, strict=True)]
        answers = [
            [*one[first + 1 :].tolist(), int(wanted[-1])][: int(where[-1]) - first + 1] if len(where) else []
            for one, first, wanted, where in zip(ids, firsts, targets, places, strict=True)
        ]
        asked = [where - first for where, first in zip(places, firsts, strict=True)]
    found = author.forced(prompts, answers)
    return np.concatenate([one[where] for one, where in zip(found, asked, strict=True)])


class Stepping:
    """The ``Stepper`` of a torch decoder: for comparing the model itself, or the ``member`` of several."""

    def __init__(self, decoder: Decoder, member: int = 0) -> None:
        self._decoder, self._member = decoder, member
        self.start: int | None = None

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> NDArray[np.float32]:
        """Read prompts."""
        self._decoder.start, self._decoder.members = self.start, [self._member] * len(prompts)
        return self._decoder.begin(prompts, room).cpu().numpy()

    def step(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append a token to each row."""
        return self._decoder.step(_like(ids)).cpu().numpy()

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with these rows."""
        self._decoder.select(_like(rows))


def _like(values: NDArray[np.int64]) -> Tensor:
    import torch

    return torch.from_numpy(np.asarray(values, dtype=np.int64))


def scored(logits: NDArray[np.float32], token: int) -> tuple[float, float]:
    """Return minus the logarithm of a token's probability, in double precision, and whether it is the likeliest."""
    row = logits.astype(np.float64)
    row -= row.max()
    return float(np.log(np.exp(row).sum()) - row[token]), float(row.argmax() == token)
