"""Windows of a stream: how a log is cut into them, and which of their events count."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Int, Num

from mmrec_jax.data.log import Log, core
from mmrec_jax.errors import ConfigError, DataError
from mmrec_jax.streaming.config import StreamConfig


@dataclass(frozen=True)
class Window:
    """Consecutive events of a stream.

    Attributes:
        number: counted from 1.
        name: what a person calls it: a span of time, or a file.
        events: columns `user` and `item` (ids, strings) and `time` (the source's own unit), in order of time; events
            of the same time stay in the order of the source.
        items: catalogue records of items that come with the window, the id in column `item`; None where the catalogue
            is known beforehand.
    """

    number: int
    name: str
    events: pl.DataFrame
    items: pl.DataFrame | None = None

    def __len__(self) -> int:
        return len(self.events)


def cut(log: Log, item_ids: pl.Series, config: StreamConfig) -> list[Window]:
    """Cuts a log into windows, and leaves in each what its k-core keeps.

    Args:
        log: the events, in any order.
        item_ids: ids that `log.items` index.
        config: `windows`, `cut`, `user_core`, `item_core`.

    Raises:
        ConfigError: the log has no times.
        DataError: a window is left with no event.
    """
    if log.times is None:
        raise ConfigError(
            "--mode=stream cuts a log by time, and this source only gives the order of each user's events: it has no "
            "stream."
        )
    order = np.argsort(log.times, kind="stable")
    times = log.times[order]
    edges = [0, *(_by_count if config.cut == "count" else _by_time)(times, config.windows), len(times)]
    events = pl.DataFrame(
        {
            "user": log.user_ids.gather(log.users[order]).cast(pl.String),
            "item": item_ids.gather(log.items[order]).cast(pl.String),
            "time": times,
        }
    )
    windows = []
    for number, (start, stop) in enumerate(itertools.pairwise(edges), 1):
        held = events[start:stop]
        name = f"{held['time'][0]} to {held['time'][-1]}" if len(held) else "no events"
        kept = in_core(held, config)
        if not len(kept):
            raise DataError(
                f"window {number} of {config.windows} ({name}) has no event left of {len(held)}: lower stream.windows, "
                "stream.user_core or stream.item_core, or cut by count."
            )
        windows.append(Window(number, name, kept))
    return windows


def in_core(events: pl.DataFrame, config: StreamConfig) -> pl.DataFrame:
    """The events of a window whose users and items have enough of them in it (iterative k-core), in the same order."""
    if max(config.user_core, config.item_core) <= 1 or not len(events):
        return events
    users, items = (events[column].rank("dense").to_numpy().astype(np.int32) - 1 for column in ("user", "item"))
    log = Log(users, items, None, events["user"])
    return events.filter(pl.Series(core(log, config.user_core, config.item_core)[0]))


def numbered(windows: Iterator[Window], first: int = 1) -> Iterator[Window]:
    """The windows, checked to come in order from number `first` on.

    Raises:
        DataError: a number is missing, or comes twice.
    """
    for expected, window in enumerate(windows, first):
        if window.number != expected:
            raise DataError(f"window {window.number} ({window.name}) came where window {expected} was due.")
        yield window


def _by_count(times: Num[np.ndarray, " event"], windows: int) -> Int[np.ndarray, " edge"]:
    """Equal numbers of events; an edge inside a moment moves to that end of it which is nearer."""
    wanted = np.round(np.arange(1, windows) * len(times) / windows).astype(np.int64)
    moments = times[np.minimum(wanted, len(times) - 1)]
    starts, stops = np.searchsorted(times, moments), np.searchsorted(times, moments, side="right")
    return np.where(wanted - starts < stops - wanted, starts, stops)


def _by_time(times: Num[np.ndarray, " event"], windows: int) -> Int[np.ndarray, " edge"]:
    """Equal spans of time; an event on an edge belongs to the later window."""
    edges = np.linspace(float(times[0]), float(times[-1]), windows + 1)[1:-1]
    return np.searchsorted(times, edges)
