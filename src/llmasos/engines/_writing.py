"""What follows from an engine that writes step by step: answers scored, answers written, and the decoder of a loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .base import Stepper

if TYPE_CHECKING:
    from torch import Tensor

AT_ONCE = 16
"""Prompts that are written to together."""


class Writing:
    """An ``Author`` by steps: through the same cache by which the model writes for its users."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper

    def forced(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """Score answers; see ``Author``."""
        out: list[NDArray[np.float32]] = []
        for start in range(0, len(prompts), AT_ONCE):
            out += self._forced(prompts[start : start + AT_ONCE], answers[start : start + AT_ONCE])
        return out

    def _forced(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        most = max(map(len, answers))
        found = [np.zeros((len(answer), 2), dtype=np.float32) for answer in answers]
        if not most:
            return found
        logits = self._stepper.begin(prompts, most)
        for place in range(most):
            for row, answer in enumerate(answers):
                if place < len(answer):
                    found[row][place] = scored(logits[row], answer[place])
            if place + 1 < most:  # a row that has ended goes on with anything: nobody looks at it
                given = [answer[min(place, len(answer) - 1)] if answer else 0 for answer in answers]
                logits = self._stepper.step(np.asarray(given, dtype=np.int64))
        return found

    def greedy(self, prompts: Sequence[Sequence[int]], most: int, ends: Sequence[int]) -> list[list[int]]:
        """Write the likeliest tokens; see ``Author``."""
        out: list[list[int]] = []
        for start in range(0, len(prompts), AT_ONCE):
            out += self._greedy(prompts[start : start + AT_ONCE], most, frozenset(ends))
        return out

    def _greedy(self, prompts: Sequence[Sequence[int]], most: int, ends: frozenset[int]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        over = [most <= 0] * len(prompts)
        logits = self._stepper.begin(prompts, most)
        while True:
            tokens = logits.argmax(axis=1)
            for row, token in enumerate(tokens.tolist()):
                over[row] = over[row] or token in ends
                if not over[row]:
                    answers[row].append(token)
                    over[row] = len(answers[row]) >= most
            if all(over):
                return answers
            logits = self._stepper.step(tokens.astype(np.int64))


def scored(logits: NDArray[np.float32], token: int) -> tuple[float, float]:
    """Return minus the logarithm of a token's probability, found in double precision, and whether it is the likeliest."""
    row = logits.astype(np.float64)
    row -= row.max()
    return float(np.log(np.exp(row).sum()) - row[token]), float(row.argmax() == token)


class Decoding:
    """The ``decoders/base.Decoder`` of a Stepper, for the decoding loop: beams, draws, grammars and streams."""

    def __init__(self, stepper: Stepper, how: str) -> None:
        self._stepper, self.how = stepper, how
        self.start: int | None = None

    def begin(self, prompts: Sequence[Sequence[int]], room: int) -> Tensor:
        """Read prompts; see ``decoders/base.py``."""
        return _tensor(self._stepper.begin(prompts, room))

    def step(self, ids: Tensor) -> Tensor:
        """Append a token to each row."""
        return _tensor(self._stepper.step(ids.cpu().numpy()))

    def select(self, rows: Tensor) -> None:
        """Go on with these rows."""
        self._stepper.select(rows.cpu().numpy())


def _tensor(values: NDArray[np.float32]) -> Tensor:
    import torch

    return torch.from_numpy(np.array(values, dtype=np.float32))
