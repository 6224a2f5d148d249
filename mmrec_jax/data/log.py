"""The interaction log as arrays, and the filters over it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, Int32, Int64, Num


@dataclass(frozen=True)
class Log:
    """Interactions in the order of the file or, once `in_time_order`, by user and time.

    Attributes:
        users: user of each event, an index into `user_ids`.
        items: item of each event, an index into the raw catalogue.
        times: when it happened, in the source's own unit; None where only the order is known.
        user_ids: the users' ids by first appearance.
    """

    users: Int32[np.ndarray, " event"]
    items: Int32[np.ndarray, " event"]
    times: Num[np.ndarray, " event"] | None
    user_ids: pl.Series

    def __len__(self) -> int:
        return len(self.users)

    def take(self, events: Bool[np.ndarray, " event"] | Int[np.ndarray, " taken"]) -> Log:
        """The chosen events: a mask, or indices in a new order."""
        times = None if self.times is None else self.times[events]
        return replace(self, users=self.users[events], items=self.items[events], times=times)

    def counts(self) -> dict[str, int]:
        """Number of events, and of the users and items that occur in them."""
        return {
            "interactions": len(self),
            "users": int(np.count_nonzero(np.bincount(self.users))),
            "items": int(np.count_nonzero(np.bincount(self.items))),
        }


def time_order(log: Log) -> Int64[np.ndarray, " event"]:
    """Indices that sort the events by user, then time; events of the same time stay in file order."""
    keys = (log.users,) if log.times is None else (log.times, log.users)
    return np.lexsort(keys)


def repeated_events(log: Log) -> Bool[np.ndarray, " event"]:
    """Which events of a log in time order have the user, item and time of an earlier one."""
    repeated = np.zeros(len(log), bool)
    if log.times is None or not len(log):
        return repeated
    same = (log.users[1:] == log.users[:-1]) & (log.times[1:] == log.times[:-1])
    tied = np.flatnonzero(np.append(False, same) | np.append(same, False))
    moment = np.cumsum(~np.append(False, same))[tied]
    order = np.lexsort((log.items[tied], moment))
    again = (np.diff(moment[order]) == 0) & (np.diff(log.items[tied][order]) == 0)
    repeated[tied[order[1:][again]]] = True
    return repeated


def core(log: Log, user_core: int, item_core: int) -> tuple[Bool[np.ndarray, " event"], int]:
    """Iterative k-core: the largest part of the log in which every user and item has enough events.

    Args:
        log: the events.
        user_core: least events a user must have.
        item_core: least events an item must have.

    Returns:
        A mask over the events, and the number of rounds it took.
    """
    users, items = log.users, log.items
    kept = np.arange(len(log))
    rounds = 0
    while True:
        enough = (np.bincount(users)[users] >= user_core) & (np.bincount(items)[items] >= item_core)
        if enough.all():
            break
        users, items, kept = users[enough], items[enough], kept[enough]
        rounds += 1
    mask = np.zeros(len(log), bool)
    mask[kept] = True
    return mask, rounds


def position_from_end(
    users: Int32[np.ndarray, " event"],
) -> Int64[np.ndarray, " event"]:
    """How many events of the same user follow each event of a log that is grouped by user."""
    stops = np.cumsum(np.bincount(users))
    return stops[users] - 1 - np.arange(len(users))
