"""What is trained on and what is predicted, against a plain statement of the protocol event by event."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from mmrec_jax.streaming import examples
from mmrec_jax.streaming.config import StreamConfig
from mmrec_jax.streaming.memory import Memory
from mmrec_jax.streaming.windows import Window

CONFIG = StreamConfig(user_core=0, valid_fraction=0.3)


def remembered(validation: str = "slice", seed: int = 0) -> tuple[Memory, list[Window]]:
    """Three windows of random events, each user of which has one to nine in a window."""
    rng = np.random.default_rng(seed)
    memory, windows = Memory(replace(CONFIG, validation=validation)), []
    for number in (1, 2, 3):
        users = rng.integers(0, 12, 50)
        frame = pl.DataFrame(
            {
                "user": [f"u{user}" for user in users],
                "item": [f"i{item}" for item in rng.integers(0, 10 + 5 * number, 50)],
                "time": np.arange(50) + 100 * number,
            }
        )
        windows.append(Window(number, f"w{number}", frame))
        memory.add(windows[-1])
    return memory, windows


def histories(memory: Memory, windows: list[Window]) -> dict[str, list[tuple[int, int, int]]]:
    """User -> (item row, window, place in the window) of each event, in order of time."""
    rows = {item: row for row, item in enumerate(memory.item_ids, 1)}
    found: dict[str, list] = {}
    for window in windows:
        for place, (user, item, _) in enumerate(window.events.iter_rows()):
            found.setdefault(user, []).append((rows[item], window.number, place))
    return found


def validates(memory, windows, validation):
    """(user, place in the history) of the events that validate."""
    found = set()
    for user, events in histories(memory, windows).items():
        for number in (1, 2, 3):
            own = [at for at, event in enumerate(events) if event[1] == number]
            if validation == "slice":
                found |= {(user, at) for at in own if events[at][2] >= 35}  # the last 15 of 50
            elif own:
                count = int(np.round(len(own) * 0.3))
                found |= {(user, at) for at in own[len(own) - count :]}
    return found


def test_items_and_users_are_numbered_by_appearance_and_what_is_new_is_told():
    memory, windows = remembered()
    together = pl.concat([window.events for window in windows])
    assert memory.item_ids == together["item"].unique(maintain_order=True).to_list()
    assert memory.user_ids == together["user"].unique(maintain_order=True).to_list()
    again = Memory(CONFIG, first=1)
    assert again.add(windows[0]) == windows[0].events["item"].unique(maintain_order=True).to_list()
    assert again.num_items == windows[0].events["item"].n_unique()
    assert again.add(replace(windows[0], number=2)) == []


@pytest.mark.parametrize("validation", ["slice", "user"])
@pytest.mark.parametrize("context", ["window", "all"])
def test_every_event_that_trains_is_a_target_once_and_read_after_what_came_before_it(validation, context):
    memory, windows = remembered(validation)
    rows = examples.rows(memory.events, np.asarray([2]), 3, "chunks", context)
    chosen = np.arange(len(rows))
    events, inputs = rows.events(chosen), rows.inputs(chosen)
    found = Counter(
        (memory.user_ids[rows.users[row]], int(events[row, column]), int(events[row, column + 1]))
        for row, column in zip(*np.nonzero(inputs), strict=True)
    )
    held = validates(memory, windows, validation)
    wanted = Counter(
        (user, own[at - 1][0], own[at][0])
        for user, own in histories(memory, windows).items()
        for at in range(1, len(own))
        if own[at][1] == 2 and (user, at) not in held and (context == "all" or own[at - 1][1] == 2)
    )
    assert found == wanted
    counted = examples.popularity(rows, memory.num_items + 1)
    assert {item: int(n) for item, n in enumerate(counted) if n} == Counter(
        target for _, _, target in wanted.elements()
    )


def test_the_last_row_of_each_user_is_what_the_papers_code_trains_on():
    memory, _ = remembered()
    every = examples.rows(memory.events, np.asarray([1]), 3, "chunks", "window")
    last = examples.rows(memory.events, np.asarray([1]), 3, "last", "window")
    ends = {user: row for row, user in enumerate(every.users)}
    assert len(np.unique(last.users)) == len(last) == len(ends)
    for row, user in enumerate(last.users):
        np.testing.assert_array_equal(last.events(np.asarray([row])), every.events(np.asarray([ends[user]])))


@pytest.mark.parametrize("context", ["window", "all"])
@pytest.mark.parametrize("targets", ["last", "all"])
def test_a_tested_user_has_enough_events_in_the_window_and_is_predicted_after_what_came_before(context, targets):
    memory, windows = remembered()
    found = examples.tested(memory.events, 3, min_events=3, context=context, targets=targets)
    own = histories(memory, windows)
    wanted = []
    for user, events in own.items():
        places = [at for at, event in enumerate(events) if event[1] == 3]
        if len(places) < 3:
            continue
        for at in places[-1:] if targets == "last" else places:
            readable = at - (places[0] if context == "window" else 0)
            if readable:
                history = [event[0] for event in events[:at]]
                wanted.append((user, history, events[at][0], readable, events[at][0] in history))
    seen = [
        (
            memory.user_ids[found.users[row]],
            found.histories.rows(row).tolist(),
            int(found.targets[row]),
            int(found.readable[row]),
            bool(found.repeat[row]),
        )
        for row in range(len(found))
    ]
    assert sorted(seen) == sorted(wanted)
    read = found.inputs(np.arange(len(found)), 4)
    for row, (_, history, _, readable, _) in enumerate(seen):
        assert read[row][read[row] > 0].tolist() == history[-min(readable, 4) :]


@pytest.mark.parametrize("validation", ["slice", "user"])
def test_what_validates_is_never_trained_on(validation):
    memory, windows = remembered(validation)
    found = examples.validated(memory.events, 1, context="window", targets="all")
    held = validates(memory, windows, validation)
    own = histories(memory, windows)
    first = {user: min(at for at, event in enumerate(events) if event[1] == 1) for user, events in own.items()
             if any(event[1] == 1 for event in events)}  # fmt: skip
    wanted = sorted((user, own[user][at][0]) for user, at in held if own[user][at][1] == 1 and at > first[user])
    assert sorted((memory.user_ids[u], int(t)) for u, t in zip(found.users, found.targets, strict=True)) == wanted
    items = examples.validating_items(memory.events, 1, memory.num_items + 1)
    assert set(np.flatnonzero(items)) == {own[user][at][0] for user, at in held if own[user][at][1] == 1}


def test_rows_of_older_windows_join():
    memory, _ = remembered()
    new = examples.rows(memory.events, np.asarray([3]), 3, "chunks", "window")
    old = examples.rows(memory.events, np.asarray([1, 2]), 3, "chunks", "window")
    both = examples.joined(new, old, np.asarray([0, 4]))
    assert len(both) == len(new) + 2
    np.testing.assert_array_equal(both.events(np.arange(len(new), len(both))), old.events(np.asarray([0, 4])))
    np.testing.assert_array_equal(both.inputs(np.arange(len(new), len(both))), old.inputs(np.asarray([0, 4])))
