"""Augmentation: changes what it may, by as much as it says, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from llmasos.data.augment import augment, augmented_order

SPECIAL = frozenset({101, 102})
TEXT = np.array([101, *range(1, 41), 102], dtype=np.int32)
PAIR = np.array([101, *range(1, 21), 102, *range(201, 221), 102], dtype=np.int32)


def drawn(ids, rate: float, count: int = 300):
    return [augment(ids, rate, SPECIAL, np.random.default_rng(seed)) for seed in range(count)]


def test_rate_zero_returns_the_same_array():
    assert augment(TEXT, 0.0, SPECIAL, np.random.default_rng(0)) is TEXT


def test_the_input_is_never_changed():
    before = TEXT.copy()
    out = drawn(TEXT, 0.5)
    assert (before == TEXT).all()
    assert all(row.dtype == TEXT.dtype and not np.shares_memory(row, TEXT) for row in out)


def test_the_same_generator_gives_the_same_text():
    again = drawn(TEXT, 0.3, 20)
    assert all((a == b).all() for a, b in zip(drawn(TEXT, 0.3, 20), again, strict=True))
    assert len({tuple(row) for row in again}) > 15


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_half_of_the_rate_is_dropped(rate):
    kept = np.mean([len(row) - 2 for row in drawn(TEXT, rate)]) / 40
    assert kept == pytest.approx(1 - rate / 2, abs=0.01)  # 12,000 tokens


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_about_half_of_the_rate_moves(rate):
    moved = []
    for row in drawn(TEXT, rate):
        ordinary = row[1:-1]
        moved.append((ordinary != np.sort(ordinary)).mean())
    assert np.mean(moved) == pytest.approx(rate / 2, rel=0.25)  # spans sometimes overlap


@pytest.mark.parametrize("ids", [TEXT, PAIR])
def test_no_token_is_invented_or_doubled(ids):
    for row in drawn(ids, 0.5):
        ordinary = [token for token in row.tolist() if token not in SPECIAL]
        assert len(set(ordinary)) == len(ordinary)
        assert set(ordinary) <= set(ids.tolist())


def test_special_tokens_stay_and_nothing_crosses_them():
    for row in drawn(PAIR, 0.5):
        first, middle, last = np.flatnonzero(np.isin(row, list(SPECIAL)))
        assert (first, last) == (0, len(row) - 1)
        assert row[[first, middle, last]].tolist() == [101, 102, 102]
        assert (row[1:middle] < 100).all()
        assert (row[middle + 1 : last] > 200).all()


def test_token_types_follow_their_tokens():
    types = (np.arange(len(PAIR)) > 21).astype(np.uint8)
    for seed in range(100):
        order = augmented_order(PAIR, 0.5, SPECIAL, np.random.default_rng(seed))
        assert ((PAIR[order] > 200) == types[order])[~np.isin(PAIR[order], list(SPECIAL))].all()
        assert (np.diff(types[order].astype(int)) >= 0).all()


@pytest.mark.parametrize("ids", [[101, 7, 102], [101, 7, 8, 102], [101, 7, 102, 8, 102], [7]])
def test_no_text_becomes_empty(ids):
    parts = sum(a not in SPECIAL and (i == 0 or ids[i - 1] in SPECIAL) for i, a in enumerate(ids))
    for row in drawn(np.array(ids), 0.5):
        assert sum(token not in SPECIAL for token in row.tolist()) >= parts


@pytest.mark.parametrize("ids", [[], [101, 102], [101, 102, 102]])
def test_nothing_ordinary_means_nothing_changes(ids):
    assert augment(np.array(ids, dtype=np.int32), 0.5, SPECIAL, np.random.default_rng(0)).tolist() == ids


def test_without_special_tokens_the_whole_text_is_one_part():
    out = augment(np.arange(30), 0.5, frozenset(), np.random.default_rng(0))
    assert 0 < len(out) < 30
