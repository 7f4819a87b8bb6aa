"""Keys and values of prompts that were read before, so that what many prompts begin with is read once.

They are kept in blocks of tokens. A block is known by a hash over itself and all before it, which begins with a salt:
prompts of another salt never meet, so that nobody can tell by the time what others asked.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch import Tensor

BLOCK = 32
"""Tokens of a block."""


class Prefixes:
    """Blocks of keys and values; those that were not used for longest go first.

    Args:
        most: tokens that are kept at most.
    """

    def __init__(self, most: int) -> None:
        self._most = most // BLOCK
        self._blocks: OrderedDict[bytes, Tensor] = OrderedDict()
        self.reused = 0
        self._found: list[int] = []

    @property
    def tokens(self) -> int:
        """Tokens that are kept."""
        return BLOCK * len(self._blocks)

    def find(self, salt: str, prompt: Sequence[int]) -> list[Tensor]:
        """Return the blocks that a prompt begins with; at least its last token is left to be read."""
        found: list[Tensor] = []
        for name, _ in _names(salt, prompt[:-1]):
            block = self._blocks.get(name)
            if block is None:
                break
            self._blocks.move_to_end(name)
            found.append(block)
        self.reused += BLOCK * len(found)
        self._found.append(BLOCK * len(found))
        return found

    def taken(self) -> list[int]:
        """Return how many tokens were found of each prompt since this was asked last, in their order."""
        found, self._found = self._found, []
        return found

    def keep(self, salt: str, prompt: Sequence[int], read: Callable[[int], Tensor]) -> None:
        """Keep the whole blocks of a prompt; ``read`` returns that which begins at a token."""
        for name, start in _names(salt, prompt):
            if name not in self._blocks:
                self._blocks[name] = read(start)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)


def _names(salt: str, tokens: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    before = hashlib.blake2b(salt.encode(), digest_size=16).digest()
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        block = np.asarray(tokens[start : start + BLOCK], dtype=np.int64)
        before = hashlib.blake2b(before + block.tobytes(), digest_size=16).digest()
        yield before, start
