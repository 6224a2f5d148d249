"""A log is cut into windows that lose nothing, tear no moment apart and keep what their own k-core keeps."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_jax.config import base, from_json, resolve, to_json
from mmrec_jax.data.log import Log
from mmrec_jax.errors import ConfigError, DataError
from mmrec_jax.streaming.config import StreamConfig
from mmrec_jax.streaming.windows import cut, in_core, numbered

PLAIN = StreamConfig(windows=4, user_core=0)
ITEMS = pl.Series([f"i{n}" for n in range(6)])


def log_of(times, users=None, items=None) -> Log:
    count = len(times)
    users = np.arange(count) % 3 if users is None else np.asarray(users)
    items = np.arange(count) % 6 if items is None else np.asarray(items)
    names = pl.Series([f"u{n}" for n in range(3)])
    return Log(users.astype(np.int32), items.astype(np.int32), np.asarray(times), names)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=8, max_size=60))
def test_windows_hold_every_event_once_in_order_of_time_and_tear_no_moment_apart(times):
    log = log_of(times)
    try:
        windows = cut(log, ITEMS, PLAIN)
    except DataError:
        assert len(set(times)) < len(times)  # a moment fills a whole window
        return
    together = pl.concat([window.events for window in windows])
    assert together["time"].to_list() == sorted(times)
    assert sorted(together.rows()) == sorted(
        (f"u{user}", f"i{item}", time) for user, item, time in zip(log.users, log.items, times, strict=True)
    )
    for before, after in itertools.pairwise(windows):
        assert before.events["time"].max() < after.events["time"].min()


def test_equal_counts_are_equal_where_all_moments_differ():
    windows = cut(log_of(np.random.default_rng(0).permutation(42)), ITEMS, PLAIN)
    assert [len(window) for window in windows] == [10, 11, 11, 10]
    assert [window.number for window in windows] == [1, 2, 3, 4]


def test_equal_times_are_spans_of_time():
    windows = cut(log_of([0, 1, 2, 3, 24, 25, 50, 75, 100]), ITEMS, replace(PLAIN, cut="time"))
    assert [window.events["time"].to_list() for window in windows] == [[0, 1, 2, 3, 24], [25], [50], [75, 100]]


def test_events_of_a_moment_stay_in_the_order_of_the_source():
    windows = cut(log_of([5, 5, 5, 5, 9], items=[3, 1, 2, 0, 4]), ITEMS, replace(PLAIN, windows=2))
    assert windows[0].events["item"].to_list() == ["i3", "i1", "i2", "i0"]


def test_the_core_is_of_each_window_and_iterative():
    # u2 has too few events; without it i3 has too few, and without i3 u1 has.
    events = pl.DataFrame(
        {"user": ["u0", "u0", "u1", "u1", "u0", "u2"], "item": ["i0", "i1", "i0", "i3", "i0", "i3"], "time": range(6)}
    )
    config = replace(PLAIN, user_core=2, item_core=2)
    assert in_core(events, config)["item"].to_list() == ["i0", "i0"]
    assert in_core(events, replace(PLAIN, user_core=2))["user"].to_list() == ["u0", "u0", "u1", "u1", "u0"]
    assert in_core(events, PLAIN).equals(events)


def test_a_window_without_events_says_which_and_what_to_do():
    with pytest.raises(DataError, match=r"window 2 of 4 .*stream\.windows"):
        cut(log_of([0, 1, 100, 101]), ITEMS, replace(PLAIN, cut="time"))
    with pytest.raises(DataError, match=r"window 1 of 4 .*stream\.user_core"):
        cut(log_of(range(12)), ITEMS, replace(PLAIN, user_core=9))


def test_a_log_without_times_is_no_stream():
    with pytest.raises(ConfigError, match="no stream"):
        cut(replace(log_of(range(4)), times=None), ITEMS, PLAIN)


def test_windows_come_in_order():
    windows = cut(log_of(range(12)), ITEMS, PLAIN)
    assert [window.number for window in numbered(iter(windows))] == [1, 2, 3, 4]
    for wrong in (windows[1:], [windows[0], windows[0]]):
        with pytest.raises(DataError, match="was due"):
            list(numbered(iter(wrong)))


@pytest.mark.parametrize(
    ("key", "value"), [("learner", "forget"), ("windows", 1), ("min_events", 1), ("threshold", 2.0), ("replay", 0.0)]
)
def test_a_value_that_cannot_be_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"stream.{key}="):
        StreamConfig(**{key: value})


def test_the_section_is_part_of_a_runs_config():
    config = base("stream")
    config.model.system = "sasrec"
    config.stream.windows = 7
    run = resolve(config)
    assert run.stream.windows == 7
    assert from_json(to_json(run)) == run
    before = {key: value for key, value in to_json(run).items() if key != "stream"}
    assert from_json(before).stream == StreamConfig()  # a workdir of a version without streams
