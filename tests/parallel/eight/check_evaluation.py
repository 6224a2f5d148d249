"""Ranks and top-k lists over item vectors by rows are those over one array."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mmrec_jax.data.ragged import Ragged
from mmrec_jax.errors import EvaluationError
from mmrec_jax.evaluation.blocks import array_producer
from mmrec_jax.evaluation.ranking import ranked_blocks
from mmrec_jax.evaluation.topk import top_items
from mmrec_jax.parallel import ParallelConfig, make_mesh
from mmrec_jax.parallel.topk import RowCatalogue
from mmrec_jax.shards import Shards

ROWS, WIDTH, USERS = 203, 4, 37
K = 40  # more than the 26 rows of a device


@pytest.fixture(scope="module")
def data():
    """Small whole numbers: scores are exact, and many are equal."""
    random = np.random.default_rng(0)
    items = random.integers(-2, 3, (ROWS, WIDTH)).astype(np.float32)
    users = random.integers(-2, 3, (USERS, WIDTH)).astype(np.float32)
    targets = random.integers(1, ROWS, USERS).astype(np.int32)
    lengths = random.integers(0, 30, USERS)
    lengths[3] = 0
    seen = Ragged(random.integers(1, ROWS, lengths.sum()).astype(np.int32), np.append(0, np.cumsum(lengths)))
    return items, users, targets, seen


def split(items, sizes, rules=()):
    config = ParallelConfig(*sizes, rules=rules)
    shards = Shards(make_mesh(config), config.axes("batch"), config.axes("rows"))
    filled = -(-len(items) // shards.row_parts) * shards.row_parts
    padded = np.concatenate([items, np.full((filled - len(items), WIDTH), 9, np.float32)])
    return RowCatalogue(jax.device_put(padded, shards.split(shards.rows, filled)), shards, len(items))


CASES = [((8, 1, 1), ()), ((2, 2, 2), ()), ((4, 2, 1), (("rows", "model"),))]


@pytest.mark.parametrize(("sizes", "rules"), CASES)
def test_ranks_and_lists_agree_ties_and_seen_items_included(data, sizes, rules):
    items, users, targets, seen = data

    def ranked(vectors):
        blocks = list(ranked_blocks(array_producer(users), vectors, targets, seen, k=K, user_block=16))
        return np.concatenate([b.ranks for b in blocks]), np.concatenate([b.items for b in blocks])

    for one, many in zip(ranked(items), ranked(split(items, sizes, rules)), strict=True):
        np.testing.assert_array_equal(many, one)


def test_lists_of_scores_agree_and_short_ones_end_in_row_0(data):
    items, users, _, _ = data
    few, k = items[:30], 20
    everything = np.tile(np.arange(1, 25, dtype=np.int32), USERS)
    seen = Ragged(everything, np.arange(0, len(everything) + 1, 24))
    one = top_items(array_producer(users), USERS, few, k, seen, 16)
    many = top_items(array_producer(users), USERS, split(few, (8, 1, 1)), k, seen, 16)
    np.testing.assert_array_equal(many[0], one[0])
    np.testing.assert_array_equal(many[1], one[1])
    assert (many[0][:, 5:] == 0).all()


def test_vectors_that_are_not_finite_are_named_by_their_rows(data):
    items, users, _, _ = data
    broken = items.copy()
    broken[[7, 150]] = np.nan
    with pytest.raises(EvaluationError, match=r"2 item vectors are not finite, first in catalogue rows \[7, 150\]"):
        top_items(array_producer(users), USERS, split(broken, (8, 1, 1)), 5)
