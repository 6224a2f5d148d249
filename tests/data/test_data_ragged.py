"""Ragged rows behave like lists of lists."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_jax.data import Ragged
from mmrec_jax.data.ragged import joined

ROWS = st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=8)


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged.of_lengths(
        np.array([value for row in rows for value in row], np.int32), np.array([len(row) for row in rows])
    )


def lists(rows: Ragged) -> list[list[int]]:
    return [rows.rows(index).tolist() for index in range(len(rows))]


@given(rows=ROWS, data=st.data())
@settings(deadline=None)
def test_rows_lengths_and_take_agree_with_lists(rows, data):
    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    assert lists(ragged(rows)) == rows
    assert ragged(rows).lengths.tolist() == [len(row) for row in rows]
    assert lists(ragged(rows).take(np.array(indices, np.int64))) == [rows[index] for index in indices]


@given(rows=ROWS, length=st.integers(1, 8), data=st.data())
@settings(deadline=None)
def test_last_pads_on_the_left(rows, length, data):
    indices = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    padded = ragged(rows).last(np.array(indices, np.int64), length)
    assert padded.dtype == np.int32
    assert padded.shape == (len(indices), length)
    assert padded.tolist() == [([0] * length + rows[index])[-length:] for index in indices]


@given(pairs=st.lists(st.tuples(*[st.lists(st.integers(1, 99), max_size=4)] * 2), min_size=1, max_size=8))
@settings(deadline=None)
def test_joined_appends_row_by_row(pairs):
    first, second = (ragged([pair[side] for pair in pairs]) for side in (0, 1))
    assert lists(joined(first, second)) == [a + b for a, b in pairs]
