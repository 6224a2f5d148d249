"""Ranks by counting and exact top-k lists, against the plain numpy statement of both.

Vectors hold small integers, so that scores are exact in float32 and ties are frequent.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_jax.data.ragged import Ragged
from mmrec_jax.errors import ConfigError, EvaluationError
from mmrec_jax.evaluation.blocks import BlockShape, array_producer, user_blocks
from mmrec_jax.evaluation.ranking import ranked_blocks, ranks
from mmrec_jax.evaluation.topk import masked_top_k, top_items


def problem(seed: int, users: int, num_items: int, values: int = 2, longest: int = 6):
    """Random integer vectors, histories with duplicates, and targets that may lie in their history."""
    rng = np.random.default_rng(seed)
    user_vectors = rng.integers(-values, values + 1, (users, 3)).astype(np.float32)
    item_vectors = rng.integers(-values, values + 1, (num_items + 1, 3)).astype(np.float32)
    lengths = rng.integers(0, longest + 1, users)
    histories = Ragged.of_lengths(rng.integers(1, num_items + 1, lengths.sum()), lengths)
    return user_vectors, item_vectors, rng.integers(1, num_items + 1, users), histories


def plain_rank(scores: np.ndarray, target: int, history: set[int]) -> int:
    rivals = [item for item in range(1, len(scores)) if item != target and item not in history]
    return 1 + sum(scores[item] >= scores[target] for item in rivals)


def plain_list(scores: np.ndarray, k: int, history: set[int]) -> list[int]:
    allowed = [item for item in range(1, len(scores)) if item not in history]
    best = sorted(allowed, key=lambda item: (-scores[item], item))[:k]
    return best + [0] * (k - len(best))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(1, 1), (5, 4), (20, 30), (33, 200)]))
def test_ranks_and_lists_equal_the_plain_statement(seed, shape):
    users, items, targets, histories = problem(seed, *shape)
    scores = users @ items.T
    k = min(5, shape[1])
    blocks = list(ranked_blocks(array_producer(users), items, targets, histories, k=k, user_block=16))
    seen = [set(histories.rows(i).tolist()) for i in range(len(users))]
    expected = [plain_rank(*row) for row in zip(scores, targets, seen, strict=True)]
    np.testing.assert_array_equal(np.concatenate([b.ranks for b in blocks]), expected)
    lists = [plain_list(row, k, history) for row, history in zip(scores, seen, strict=True)]
    np.testing.assert_array_equal(np.concatenate([b.items for b in blocks]), lists)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), block=st.sampled_from([1, 8, 24, 64]))
def test_block_size_does_not_change_the_ranks(seed, block):
    users, items, targets, histories = problem(seed, 41, 50)
    whole = ranks(users, items, targets, histories, user_block=512)
    np.testing.assert_array_equal(ranks(users, items, targets, histories, user_block=block), whole)


def test_the_padding_row_is_no_item_even_with_the_best_score():
    users, items, targets, _ = problem(1, 10, 20)
    high = items.copy()
    high[0] = 100 * users[0]
    np.testing.assert_array_equal(ranks(users, high, targets), ranks(users, items, targets))
    assert 0 not in top_items(array_producer(users), 10, high, 20)[0]


def test_without_a_mask_history_takes_its_places():
    items = np.array([[0], [3], [2], [1]], np.float32)
    user = np.ones((1, 1), np.float32)
    seen = Ragged.of_lengths(np.array([1, 1]), np.array([2]))
    assert ranks(user, items, np.array([3])) == [3]
    assert ranks(user, items, np.array([3]), seen) == [2]


def test_all_equal_scores_rank_last():
    users, items, targets, _ = problem(2, 7, 12)
    np.testing.assert_array_equal(ranks(users, np.zeros_like(items), targets), np.full(7, 12))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    columns=st.sampled_from([2, 7, 64, 1000, 5003]),
    distinct=st.sampled_from([2, 10**6]),
)
def test_top_k_prefers_the_lower_row_among_equals(seed, columns, distinct):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, distinct, (4, columns)).astype(np.float32)
    k = min(columns - 1, 9)
    none = np.zeros(1, np.int32)
    values, rows = masked_top_k(jnp.asarray(scores), none, none, k)
    order = np.argsort(-scores[:, 1:], axis=1, kind="stable")[:, :k] + 1
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_array_equal(values, np.take_along_axis(scores, order, axis=1))


def test_top_items_excludes_seen_items_and_says_where_nothing_is_left():
    items = np.array([[9], [3], [2], [1]], np.float32)
    seen = Ragged.of_lengths(np.array([1, 1, 2, 3]), np.array([1, 3]))
    rows, scores = top_items(array_producer(np.ones((2, 1), np.float32)), 2, items, 2, seen)
    np.testing.assert_array_equal(rows, [[2, 3], [0, 0]])
    np.testing.assert_array_equal(scores, [[2, 1], [-np.inf, -np.inf]])


def test_more_items_than_the_catalogue_holds_is_an_error():
    with pytest.raises(ConfigError, match="k = 4 is larger than the catalogue of 3 items: choose k <= 3"):
        top_items(array_producer(np.ones((1, 1))), 1, np.ones((4, 1), np.float32), 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_scores_that_are_not_finite_name_the_users(value):
    users, items, targets, histories = problem(3, 20, 9)
    items += 1
    users[13, 0] = value
    with pytest.raises(EvaluationError, match=r"1 users .* first in examples \[13\]"):
        ranks(users, items, targets, histories, user_block=8)


def test_item_vectors_that_are_not_finite_name_the_rows():
    users, items, targets, histories = problem(3, 20, 9)
    items[[4, 7]] = np.nan
    with pytest.raises(EvaluationError, match=r"2 item vectors .* rows \[4, 7\]"):
        ranks(users, items, targets, histories)


def test_ranking_some_rows_is_ranking_in_a_catalogue_of_these_alone():
    users, items, _, histories = problem(3, 33, 60)
    chosen = np.random.default_rng(0).random(61) < 0.5
    chosen[0] = False
    rows = np.flatnonzero(chosen)
    targets = np.random.default_rng(1).choice(rows, 33)
    found = ranked_blocks(array_producer(users), items, targets, histories, k=5, candidates=chosen)
    ranked = np.concatenate([block.ranks for block in found])
    scores = (users @ items.T)[:, [0, *rows]]
    seen = [{int(np.searchsorted(rows, item)) + 1 for item in histories.rows(i) if chosen[item]} for i in range(33)]
    places = np.searchsorted(rows, targets) + 1
    assert ranked.tolist() == [plain_rank(*row) for row in zip(scores, places, seen, strict=True)]
    with pytest.raises(EvaluationError, match="not among the candidates"):
        list(ranked_blocks(array_producer(users), items, np.full(33, np.flatnonzero(~chosen)[1]), candidates=chosen))


def test_a_fixed_shape_gives_the_same_ranks_and_one_shape_for_all_numbers_of_users():
    users, items, targets, histories = problem(5, 41, 50)
    expected = ranks(users, items, targets, histories)
    for count in (41, 7, 1):
        first = histories.take(np.arange(count))
        producer = array_producer(users[:count])
        shape = BlockShape(16, pairs=128)
        blocks = list(ranked_blocks(producer, items, targets[:count], first, user_block=shape))
        np.testing.assert_array_equal(np.concatenate([block.ranks for block in blocks]), expected[:count])
        made = list(user_blocks(producer, count, jnp.asarray(items), first, shape))
        assert {(block.vectors.shape, block.pair_rows.shape) for block in made} == {((16, 3), (1, 128))}
