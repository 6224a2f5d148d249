"""Splits hold out what comes last, and refuse leakage."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_jax.data import prepare, splits
from mmrec_jax.data.log import Log, time_order
from mmrec_jax.errors import DataError, EmptySplitError

ITEMS = "item,title\n" + "".join(f"{i},t{i}\n" for i in range(1, 10))
EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=60)


def log_of(events: list[tuple[int, int]]) -> Log:
    users, times = (np.array(column) for column in zip(*events, strict=True))
    names = pl.Series([f"user {user}" for user in range(6)])
    log = Log(users.astype(np.int32), np.arange(len(users), dtype=np.int32), times.astype(np.int64), names)
    return log.take(time_order(log))


@given(events=EVENTS, max_length=st.sampled_from([0, 3, 5]))
@settings(deadline=None)
def test_leave_one_out_holds_out_the_last_two_events_of_users_with_at_least_three(events, max_length):
    split = splits.leave_one_out(log_of(events), max_length)
    splits.verify(split)
    for user in range(6):
        parts = split.part[split.log.users == user].tolist()
        length = sum(event[0] == user for event in events)
        length = min(length, max_length) if max_length else length
        assert parts == ([0] * (length - 2) + [1, 2] if length >= 3 else [0] * length)


@given(events=EVENTS, max_length=st.sampled_from([0, 3]))
@settings(deadline=None)
def test_a_temporal_split_never_trains_on_the_future_nor_tears_a_moment_apart(events, max_length):
    split = splits.temporal(log_of(events), 0.2, 0.2, max_length)
    splits.verify(split)
    times = [split.log.times[split.part == part] for part in (splits.TRAIN, splits.VALID, splits.TEST)]
    for earlier in range(3):
        for later in range(earlier + 1, 3):
            if len(times[earlier]) and len(times[later]):
                assert times[earlier].max() < times[later].min()
    if max_length:
        assert np.bincount(split.log.users[split.part == splits.TRAIN], minlength=1).max() <= max_length


def test_a_temporal_split_gives_the_shares_asked_for_where_times_differ():
    split = splits.temporal(log_of([(i % 6, i) for i in range(100)]), 0.1, 0.2)
    assert np.bincount(split.part).tolist() == [70, 10, 20]
    assert split.report["valid from time"] == 70
    assert split.report["test from time"] == 80


@pytest.mark.parametrize("kind", ["leave_one_out", "temporal"])
def test_a_split_with_an_event_in_an_earlier_part_than_it_belongs_to_is_refused(kind):
    log = log_of([(user, time) for user in range(6) for time in range(10)])
    split = splits.leave_one_out(log) if kind == "leave_one_out" else splits.temporal(log, 0.2, 0.2)
    splits.verify(split)
    for event in np.flatnonzero(split.part):
        part = split.part.copy()
        part[event] -= 1
        with pytest.raises(DataError, match=f"leaks: an event of user 'user {log.users[event]}'"):
            splits.verify(dataclasses.replace(split, part=part))


def test_a_split_over_events_out_of_order_is_refused():
    log = log_of([(0, 1), (0, 2), (0, 3), (0, 4)])
    for order in ([1, 0, 2, 3], [0, 1, 3, 2]):
        with pytest.raises(DataError, match="leaks"):
            splits.verify(splits.leave_one_out(log.take(np.array(order))))


def test_events_of_the_same_time_stay_in_file_order_and_are_reported(tables, tmp_path):
    log = "user,item,timestamp\na,3,5\na,1,5\na,2,5\nb,1,1\nb,2,2\nb,3,3\n"
    prepared = prepare(tables(log, ITEMS), tmp_path / "out")
    assert prepared.history("a").tolist() == [3, 1, 2]
    assert prepared.examples("test").targets.tolist() == [2, 3]
    (tied,) = (count for name, count in prepared.report["split"].items() if "shares its time" in name)
    assert tied == 1


def test_leave_one_out_examples_are_predicted_from_all_that_came_before(tables, tmp_path):
    log = "user,item,timestamp\n" + "".join(f"a,{item},{t}\n" for t, item in enumerate([1, 2, 3, 2, 4]))
    log += "b,1,1\nb,5,2\n"
    prepared = prepare(tables(log, ITEMS), tmp_path / "out")
    valid, test = prepared.examples("valid"), prepared.examples("test")
    assert [valid.users.tolist(), test.users.tolist()] == [[0], [0]]  # b has too few events to be evaluated
    assert valid.histories.rows(0).tolist() == [1, 2, 3]
    assert valid.targets.tolist() == [2]
    assert valid.repeat.tolist() == [True]
    assert test.histories.rows(0).tolist() == [1, 2, 3, 2]
    assert test.targets.tolist() == [4]
    assert test.repeat.tolist() == [False]
    assert prepared.train.rows(1).tolist() == [1, 5]


def test_temporal_examples_are_each_users_first_event_after_the_cut(tables, tmp_path):
    log = "user,item,timestamp\na,1,1\na,2,2\nb,1,3\nb,2,4\nb,3,5\nc,1,6\na,3,7\na,4,7.5\nb,4,9\nd,5,10\n"
    prepared = prepare(tables(log, ITEMS, split="temporal", valid_fraction=0.2, test_fraction=0.2), tmp_path / "out")
    valid, test = prepared.examples("valid"), prepared.examples("test")
    assert prepared.user_ids[valid.users].tolist() == ["a"]
    assert valid.targets.tolist() == [3]
    assert valid.histories.rows(0).tolist() == [1, 2]
    assert prepared.user_ids[test.users].tolist() == ["b"]  # d has no history
    assert test.histories.rows(0).tolist() == [1, 2, 3]


def test_a_split_without_an_example_is_an_error_of_its_own(tables, tmp_path):
    prepared = prepare(tables("user,item,timestamp\na,1,1\na,2,2\nb,3,1\n", ITEMS), tmp_path / "out")
    for split in ("valid", "test"):
        with pytest.raises(EmptySplitError, match=f"the {split} split .*leave_one_out; 0 held-out events"):
            prepared.examples(split)
