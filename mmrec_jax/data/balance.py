"""The rows of an epoch dealt out to its batches so that all of them need about the same room.

A batch's arrays have one of few sizes, each a program of its own, and what a batch lacks to its size is computed for
nothing. In a plain random order batches of short histories differ by as much as 20% (PROPOSAL of ours).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int32, Int64

from mmrec_jax.data.rows import Rows

_BLOCK = 65_536
"""Rows that are looked at at once."""
_GOLDEN = (5**0.5 - 1) / 2


def expected_distinct(rows: Rows, num_items: int, batch: int) -> Float64[np.ndarray, " row"]:
    """How many of a batch's distinct items a row accounts for, on average over the other rows that it may meet there.

    Of an item that a share p of the rows have, X ~ Binomial(batch - 1, p) of the others have it too, and a row that has
    it accounts for the mean of 1 / (1 + X), which is (1 - (1 - p)^batch) / (batch p).

    Args:
        rows: of an epoch.
        num_items: largest item row.
        batch: rows of a batch.
    """
    blocks = [np.arange(start, min(start + _BLOCK, len(rows))) for start in range(0, len(rows), _BLOCK)]
    counts = np.zeros(num_items + 1)
    for block in blocks:
        counts += np.bincount(_once(rows.events(block)).ravel(), minlength=num_items + 1)
    share = np.clip(counts / len(rows), 1 / len(rows), 1)
    accounts = (1 - (1 - share) ** batch) / (batch * share)
    accounts[0] = 0  # padding
    return np.concatenate([accounts[_once(rows.events(block))].sum(axis=1) for block in blocks])


def _once(events: Int32[np.ndarray, "row width"]) -> Int32[np.ndarray, "row width"]:
    """The items of each row, ascending, with 0 for all but the first of each."""
    ordered = np.sort(events, axis=1)
    return np.where(np.diff(ordered, axis=1, prepend=0) > 0, ordered, 0)


def dealt(
    order: Int64[np.ndarray, " row"],
    distinct: Float64[np.ndarray, " row"],
    steps: Int64[np.ndarray, " row"],
    batch: int,
    rng: np.random.Generator,
) -> Int64[np.ndarray, " row"]:
    """An order of the same rows whose batches differ little in the sums of `distinct` and of `steps`.

    Rows that account for about as much make a stratum, and each batch gets one of each. Strata have no sharp limits, so
    that any two rows may meet, but for those at the ends, which account for the least or the most: such a row never
    meets the half of a stratum beside it, one in 2 `batch` of all rows. Half of the strata, drawn anew in each epoch,
    are dealt at random, and the others so that the sums of `steps` even out. The rows after the last whole batch of
    `order` stay where they are: they are as random as `order` is.

    Args:
        order: a random order of the rows of an epoch.
        distinct, steps: what each row adds to its batch.
        batch: rows of a batch.
        rng: for this epoch.

    Returns:
        The order. Any contiguous part of a batch has short and long rows alike, so that a step's groups have as much to
        do as one another.
    """
    batches = len(order) // batch
    if batches < 2:
        return order
    whole, rest = np.split(order, [batches * batch])
    places = _ranks(distinct[whole]) + batches * rng.random(len(whole))
    strata = whole[np.argsort(places)].reshape(batch, batches)
    load = np.zeros(batches, np.int64)
    for turn, stratum in enumerate(rng.permutation(batch)):
        rows = rng.permutation(strata[stratum])
        if 2 * turn >= batch:
            placed = np.empty_like(rows)
            placed[np.argsort(-load, kind="stable")] = rows[np.argsort(steps[rows], kind="stable")]
            rows = placed
        strata[stratum] = rows
        load += steps[rows]
    even = strata.T  # a batch a row
    by_steps = np.take_along_axis(even, np.argsort(steps[even], axis=1, kind="stable"), axis=1)
    return np.concatenate([by_steps[:, _spread(batch)].ravel(), rest])


def _spread(size: int) -> Int64[np.ndarray, " {size}"]:
    """An order of 0 .. size - 1 whose contiguous parts are spread evenly over all of them."""
    return _ranks(np.arange(size) * _GOLDEN % 1)


def _ranks(values: Float64[np.ndarray, " value"]) -> Int64[np.ndarray, " value"]:
    """Where each value comes in ascending order; equal ones in the order they have."""
    ranks = np.empty(len(values), np.int64)
    ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
    return ranks
