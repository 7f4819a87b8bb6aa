"""Which rows make a step."""

from __future__ import annotations

import numpy as np
import pytest

from llmasos import TextClassificationTask
from llmasos.core.config import FinetuneConfig
from llmasos.data.batching import POOL, epoch_order
from llmasos.data.encoding import Encoded
from llmasos.training import trainer

LENGTHS = np.random.default_rng(0).integers(1, 200, 1003)


def _spread(order):
    return float(np.mean([np.std(LENGTHS[rows]) for rows in order]))


@pytest.mark.parametrize("pool", [1, POOL])
def test_an_epoch_sees_each_row_once_in_an_order_of_its_seed_and_number(pool):
    order = epoch_order(LENGTHS, 16, seed=3, epoch=1, pool=pool)
    assert sorted(np.concatenate(order).tolist()) == list(range(1003))
    assert sorted(map(len, order)) == [11] + [16] * 62
    again = epoch_order(LENGTHS, 16, seed=3, epoch=1, pool=pool)
    assert all(np.array_equal(a, b) for a, b in zip(order, again, strict=True))
    for seed, epoch in ((3, 2), (4, 1)):
        other = epoch_order(LENGTHS, 16, seed=seed, epoch=epoch, pool=pool)
        assert not np.array_equal(np.concatenate(order), np.concatenate(other))


def _setup(buckets):
    train = Encoded(
        ids=np.zeros(LENGTHS.sum(), dtype=np.int32), types=None, offsets=np.cumsum([0, *LENGTHS]),
        targets=np.zeros(len(LENGTHS)), rows=np.arange(len(LENGTHS)),
    )  # fmt: skip
    return trainer.Setup(
        task=TextClassificationTask(num_labels=2), train=train, evaluation=None, evaluation_rows=None,
        config=FinetuneConfig(batch_size=16), learning_rate=1e-3, metric="", precision="float32",
        architecture=None, buckets=buckets, forward="", special_ids=frozenset(), pad_id=0, describe=str,
    )  # fmt: skip


def test_batches_are_of_near_equal_length_only_where_that_was_settled():
    packed, padded = _setup(False).order(0), _setup(True).order(0)
    assert _spread(padded) < 0.3 * LENGTHS.std()
    assert _spread(packed) > 0.9 * LENGTHS.std()
