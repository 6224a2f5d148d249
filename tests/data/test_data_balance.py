"""Batches of an epoch need about the same room, and every row is still as free as in a random order."""

from __future__ import annotations

import numpy as np
import pytest

from mmrec_jax.data.balance import dealt, expected_distinct
from mmrec_jax.data.rows import Rows


@pytest.fixture(scope="module")
def rows() -> Rows:
    """1,000 histories of 2 to 12 events over 400 items, of which a few are in most of them."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 13, 1000)
    stops = np.cumsum(lengths)
    values = np.minimum(rng.geometric(0.02, stops[-1]), 400).astype(np.int32)
    return Rows(values, np.arange(1000, dtype=np.int32), stops - lengths, stops, 12)


def order_of(rows: Rows, seed: int, batch: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return dealt(rng.permutation(len(rows)), expected_distinct(rows, 400, batch), rows.lengths, batch, rng)


def needs(rows: Rows, order: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct items and steps of each whole batch."""
    batches = [rows.chosen(part) for part in order[: len(order) // batch * batch].reshape(-1, batch)]
    return np.array([len(each.items) for each in batches]), np.array([each.inputs.sum() for each in batches])


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 500, 501, 1000, 2000])
def test_every_row_has_one_place(rows, batch):
    assert sorted(order_of(rows, 0, batch)) == list(range(1000))


def test_the_order_follows_from_the_generator(rows):
    assert order_of(rows, 0, 16).tolist() == order_of(rows, 0, 16).tolist()
    first, second = ({frozenset(part) for part in order_of(rows, seed, 10).reshape(-1, 10)} for seed in (0, 1))
    assert not first & second


@pytest.mark.parametrize("batch", [2, 8, 16, 64])
def test_what_rows_account_for_adds_up_to_the_distinct_items_of_random_batches(rows, batch):
    rng = np.random.default_rng(1)
    orders = np.concatenate([rng.permutation(1000) for _ in range(max(2, batch // 2))])
    found = needs(rows, orders, batch)[0] - 1  # without padding
    expected = expected_distinct(rows, 400, batch).sum() * batch / 1000
    # Means over at least 1,000 batches of 2, or 500 of 64, whose counts differ by at most a quarter: within 2%.
    assert found.mean() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("batch", [8, 16, 64])
def test_batches_differ_far_less_than_in_a_random_order(rows, batch):
    random = needs(rows, np.random.default_rng(2).permutation(1000), batch)
    even = needs(rows, order_of(rows, 2, batch), batch)
    assert even[0].std() < 0.6 * random[0].std()
    assert even[1].std() < 0.3 * random[1].std()


def test_the_contiguous_parts_of_a_batch_have_about_as_much_to_do(rows):
    parts = 8  # of 8 rows each

    def excess(order: np.ndarray) -> float:
        """By what share the fullest part of a batch has more steps than the mean part, averaged over batches."""
        steps = rows.lengths[order[:960]].reshape(-1, parts, 64 // parts).sum(axis=2)
        return float((steps.max(axis=1) / steps.mean(axis=1)).mean()) - 1

    assert excess(order_of(rows, 3, 64)) < 0.6 * excess(np.random.default_rng(3).permutation(1000))


def test_a_row_meets_all_others_but_those_beside_it_at_the_ends(rows):
    few, batch = np.arange(60), 6
    some = Rows(rows.values, rows.users[few], rows.starts[few], rows.stops[few], 12)
    met = np.zeros((60, 60))
    for seed in range(1500):
        for part in order_of(some, seed, batch).reshape(-1, batch):
            met[np.ix_(part, part)] += 1
    pairs = met[~np.eye(60, dtype=bool)].reshape(60, 59) / 1500
    assert pairs.mean() == pytest.approx((batch - 1) / 59)
    assert (np.count_nonzero(pairs, axis=1) >= 59 - 60 / batch / 2).all()
    assert np.quantile(pairs, 0.2) > 0.5 * pairs.mean()  # a row shares a stratum with a sixth of the others
    assert pairs.max() < 3 * pairs.mean()
