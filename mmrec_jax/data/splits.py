"""Splitting each user's events into a training, a validation and a test part, in this order of time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int8

from mmrec_jax.data.log import Log, position_from_end
from mmrec_jax.errors import ConfigError, DataError

TRAIN, VALID, TEST = 0, 1, 2
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Split:
    """A log in time order with each event's part.

    Attributes:
        log: the events that are kept.
        part: TRAIN, VALID or TEST for each event; within a user it never falls.
        report: what was done, for people and for JSON.
    """

    log: Log
    part: Int8[np.ndarray, " event"]
    report: dict[str, Any]


def leave_one_out(log: Log, max_length: int = 0) -> Split:
    """The last event of each user tests, the one before validates, the rest trains.

    Events of the same time stay in file order. Users with fewer than 3 events are not evaluated: all they did
    trains.

    Args:
        log: events in time order.
        max_length: keep only the last n events of each user first (0 = all).
    """
    from_end = position_from_end(log.users)
    if max_length:
        kept = from_end < max_length
        log, from_end = log.take(kept), from_end[kept]
    evaluated = np.bincount(log.users)[log.users] >= 3
    part = np.zeros(len(log), np.int8)
    part[evaluated & (from_end == 1)] = VALID
    part[evaluated & (from_end == 0)] = TEST
    tied = 0
    if log.times is not None:
        same = (log.times[1:] == log.times[:-1]) & (log.users[1:] == log.users[:-1]) & (part[1:] != TRAIN)
        tied = len(np.unique(log.users[1:][same]))
    report = {
        "kind": "leave_one_out",
        "order": "file order" if log.times is None else "time, then file order",
        "users with fewer than 3 events, only trained on": _number_of_users(log, ~evaluated),
        "users whose held-out event shares its time with the one before (file order decides)": tied,
    }
    return Split(log, part, report)


def temporal(log: Log, valid_fraction: float, test_fraction: float, max_length: int = 0) -> Split:
    """Two cuts in time for all users: before the first trains, between them validates, then tests.

    A cut is a moment: all events of that moment and later lie after it, so events of the same time are never
    torn apart and a part can be smaller or larger than asked.

    Args:
        log: events in time order by user.
        valid_fraction, test_fraction: shares of all events.
        max_length: keep only the last n training events of each user (0 = all).

    Raises:
        ConfigError: the log has no times.
    """
    if log.times is None:
        raise ConfigError(
            "data.split='temporal' needs times, and this source only gives the order of each user's events: "
            "use data.split='leave_one_out'."
        )
    moments = np.sort(log.times)
    total = len(moments)
    test_cut = moments[min(total - 1, round(total * (1 - test_fraction)))]
    valid_cut = moments[min(total - 1, round(total * (1 - test_fraction - valid_fraction)))]
    part = (log.times >= valid_cut).astype(np.int8) + (log.times >= test_cut).astype(np.int8)
    if max_length:
        train = np.flatnonzero(part == TRAIN)
        kept = part != TRAIN
        kept[train[position_from_end(log.users[train]) < max_length]] = True
        log, part = log.take(kept), part[kept]
    has_training = np.zeros(len(log.user_ids), bool)
    has_training[log.users[part == TRAIN]] = True
    report = {
        "kind": "temporal",
        "valid from time": valid_cut.item(),
        "test from time": test_cut.item(),
        "users without a training event, not evaluated in valid": _number_of_users(
            log, (part == VALID) & ~has_training[log.users]
        ),
    }
    return Split(log, part, report)


def verify(split: Split) -> None:
    """Checks from the events themselves that nothing in a later part comes before an earlier part.

    Raises:
        DataError: an event of training lies after a held-out event of the same user or, in a temporal split,
            on the wrong side of a cut; or a user has other than one validation and one test event in
            leave-one-out.
    """
    log, part = split.log, split.part
    same_user = log.users[1:] == log.users[:-1]
    faulty = np.zeros(len(log), bool)
    faulty[1:] = (log.users[1:] < log.users[:-1]) | (same_user & (part[1:] < part[:-1]))
    if log.times is not None:
        faulty[1:] |= same_user & (log.times[1:] < log.times[:-1])
    if split.report["kind"] == "temporal":
        after_valid, after_test = (log.times >= split.report[cut] for cut in ("valid from time", "test from time"))
        faulty |= part != after_valid.astype(np.int8) + after_test
    else:
        held_out = np.bincount(log.users, part == VALID), np.bincount(log.users, part == TEST)
        faulty |= ((held_out[0] > 1) | (held_out[0] != held_out[1]))[log.users]
    if faulty.any():
        user = log.user_ids[int(log.users[faulty][0])]
        raise DataError(f"the split leaks: an event of user {user!r} is in a part it does not belong to.")


def _number_of_users(log: Log, events: Bool[np.ndarray, " event"]) -> int:
    return len(np.unique(log.users[events]))
