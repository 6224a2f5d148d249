"""Filters keep exactly what they say."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_jax.data import prepare
from mmrec_jax.data.log import Log, core, position_from_end, repeated_events, time_order
from mmrec_jax.errors import DataError

ITEMS = "item,title\n" + "".join(f"{i},t{i}\n" for i in range(1, 10))
EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40)


def log_of(events: list[tuple[int, int, int]]) -> Log:
    users, items, times = (np.array(column) for column in zip(*events, strict=True))
    names = pl.Series([str(user) for user in range(6)])
    return Log(users.astype(np.int32), items.astype(np.int32), times.astype(np.int64), names)


@given(events=EVENTS, user_core=st.integers(0, 4), item_core=st.integers(0, 4))
@settings(deadline=None)
def test_core_equals_removing_poor_users_and_items_until_none_is_left(events, user_core, item_core):
    kept = list(enumerate(events))
    while True:
        users = Counter(event[0] for _, event in kept)
        items = Counter(event[1] for _, event in kept)
        richer = [(i, e) for i, e in kept if users[e[0]] >= user_core and items[e[1]] >= item_core]
        if len(richer) == len(kept):
            break
        kept = richer
    mask, _ = core(log_of(events), user_core, item_core)
    assert np.flatnonzero(mask).tolist() == [i for i, _ in kept]


@given(events=EVENTS)
@settings(deadline=None)
def test_time_order_is_by_user_then_time_then_place_in_the_file(events):
    expected = sorted(range(len(events)), key=lambda i: (events[i][0], events[i][2], i))
    assert time_order(log_of(events)).tolist() == expected


@given(events=EVENTS)
@settings(deadline=None)
def test_repeated_events_are_all_but_the_first_of_each_user_item_and_time(events):
    ordered = log_of(events).take(time_order(log_of(events)))
    seen: set = set()
    expected = []
    for event in zip(ordered.users.tolist(), ordered.items.tolist(), ordered.times.tolist(), strict=True):
        expected.append(event in seen)
        seen.add(event)
    assert repeated_events(ordered).tolist() == expected


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=10))
@settings(deadline=None)
def test_position_from_end_counts_the_later_events_of_the_user(lengths):
    users = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    expected = [place for length in lengths for place in range(length - 1, -1, -1)]
    assert position_from_end(users).tolist() == expected


def test_a_rating_threshold_leaves_out_lower_ratings_and_counts_them(tables, tmp_path):
    log = "user,item,timestamp,rating\na,1,1,4\na,2,2,3.5\na,3,3,5\na,4,4,4\n"
    prepared = prepare(tables(log, ITEMS, min_rating=4.0), tmp_path / "out")
    assert [prepared.item_ids[row] for row in prepared.history("a")] == ["1", "3", "4"]
    assert {"step": "without rating below 4.0", "interactions": 3} in prepared.report["steps"]
    assert "without rating below 4.0: 3 interactions" in prepared.describe()


def test_a_threshold_needs_a_rating_in_every_row(tables, tmp_path):
    log = "user,item,timestamp,rating\na,1,1,4\na,2,2,good\n"
    with pytest.raises(DataError, match=r"rating is not a number: row 3 \(good\)"):
        prepare(tables(log, ITEMS, min_rating=4.0), tmp_path / "out")
    with pytest.raises(DataError, match=r"no column 'stars'.*set data.rating_column"):
        prepare(tables(log, ITEMS, min_rating=4.0, rating_column="stars"), tmp_path / "out")


def test_labels_of_zero_are_left_out(tables, tmp_path):
    log = "user,item,timestamp,click\na,1,1,1\na,2,2,0\na,3,3,True\na,4,4,1.0\n"
    prepared = prepare(tables(log, ITEMS, label_column="click"), tmp_path / "out")
    assert [prepared.item_ids[row] for row in prepared.history("a")] == ["1", "3", "4"]
    with pytest.raises(DataError, match=r"label is neither 0 nor 1: row 6 \(2\)"):
        prepare(tables(log + "a,5,5,2\n", ITEMS, label_column="click"), tmp_path / "out")


def test_max_length_keeps_the_last_events_and_renumbers_the_items_that_are_left(tables, tmp_path):
    log = "user,item,timestamp\n" + "".join(f"a,{item},{item}\n" for item in range(1, 8))
    kept = prepare(tables(log, ITEMS, max_length=4), tmp_path / "out")
    assert kept.item_ids.tolist() == ["", "4", "5", "6", "7"]
    assert kept.history("a").tolist() == [1, 2, 3, 4]
    assert kept.train.values.tolist() == [1, 2]
    assert kept.report["steps"][-1] == {
        "step": "last 4 of each user",
        "interactions": 4,
        "users": 1,
        "items": 4,
    }


def test_candidates_are_the_items_of_the_log_or_the_whole_catalogue_in_its_order(tables, tmp_path):
    log = "user,item,timestamp\na,7,1\na,2,2\na,5,3\n"
    of_log = prepare(tables(log, ITEMS), tmp_path / "out")
    assert of_log.item_ids.tolist() == ["", "2", "5", "7"]
    assert of_log.catalogue["title"].to_list() == ["t2", "t5", "t7"]
    assert of_log.history("a").tolist() == [3, 1, 2]
    of_catalogue = prepare(tables(log, ITEMS, candidates="catalogue"), tmp_path / "out")
    assert of_catalogue.num_items == 9
    assert of_catalogue.history("a").tolist() == [7, 2, 5]
    assert of_catalogue.popularity.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
