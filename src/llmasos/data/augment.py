"""Small changes to a training text, for data sets of some hundred rows.

Two of the four operations of EDA (Wei & Zou 2019, "Easy Data Augmentation"), chosen because they know
no language and need no dictionary: random deletion and random swap, here on tokens and short spans.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LONGEST = 3  # tokens in a swapped span: short enough that a phrase survives
_MOVED = 1 + _LONGEST  # tokens that one swap moves, on average


def augment(ids: NDArray[Any], rate: float, special: frozenset[int], rng: np.random.Generator) -> NDArray[Any]:
    """Return a changed copy of one text's token ids.

    Each ordinary token is dropped with probability ``rate / 2``, and neighbouring spans of one to
    three tokens are exchanged until, on average, ``rate / 2`` of the tokens have moved. Special tokens
    stay, in their order, and nothing crosses them; what stood between two of them keeps at least one
    token.

    Args:
        ids: token ids, (tokens,); not changed.
        rate: share of tokens dropped or moved; with 0 the very same array comes back.
        special: ids that are never touched.
        rng: where chance comes from; equal states give equal results.

    Example:
        >>> ids = np.array([101, 7, 8, 9, 102])
        >>> augment(ids, 0.5, frozenset({101, 102}), np.random.default_rng(2))
        array([101,   7,   8, 102])
    """
    return ids if rate == 0.0 else ids[augmented_order(ids, rate, special, rng)]


def augmented_order(
    ids: NDArray[Any], rate: float, special: frozenset[int], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the places of the tokens that ``augment`` keeps, in their new order.

    Whatever runs along with the ids, such as token types, is changed alike by indexing with it.
    """
    places = np.arange(len(ids))
    fixed = np.isin(ids, list(special))
    dropped = rng.random(len(ids)) < rate / 2
    cuts = np.flatnonzero(fixed[1:] != fixed[:-1]) + 1
    parts = []
    for part in np.split(places, cuts):
        if not len(part) or fixed[part[0]]:
            parts.append(part)
            continue
        kept = part[~dropped[part]]
        parts.append(_swapped(kept if len(kept) else part[[rng.integers(len(part))]], rate, rng))
    return np.concatenate(parts)


def _swapped(part: NDArray[np.int64], rate: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Exchange pairs of neighbouring spans, as often as the rate asks for."""
    longest = min(_LONGEST, len(part) // 2)
    if not longest:
        return part
    for _ in range(rng.poisson(rate / 2 * len(part) / _MOVED)):
        first, second = rng.integers(1, longest + 1, size=2)
        start = rng.integers(len(part) - first - second + 1)
        middle, stop = start + first, start + first + second
        part = np.concatenate([part[:start], part[middle:stop], part[start:middle], part[stop:]])
    return part
