"""What a stream has brought so far: users and items, numbered by first appearance, and each user's events in order."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, Int32, Int64

from mmrec_jax.data.log import position_from_end
from mmrec_jax.data.ragged import offsets_of
from mmrec_jax.streaming.config import StreamConfig
from mmrec_jax.streaming.windows import Window


@dataclass(frozen=True)
class Events:
    """Events by user and time. Those of a user in a window lie together: a *visit*.

    Attributes:
        items: catalogue row of each event.
        windows: number of the window that brought it.
        valid: whether it validates, and is never a target of training.
        offsets: where each user's events begin; the last entry is the total.
        begins, stops: of each visit, where its events lie.
        trained: of each visit, where those that train end and those that validate begin.
        visitors: user of each visit.
    """

    items: Int32[np.ndarray, " event"]
    windows: Int32[np.ndarray, " event"]
    valid: Bool[np.ndarray, " event"]
    offsets: Int64[np.ndarray, " user_and_one"]
    begins: Int64[np.ndarray, " visit"]
    stops: Int64[np.ndarray, " visit"]
    trained: Int64[np.ndarray, " visit"]
    visitors: Int32[np.ndarray, " visit"]

    def visits(self, windows: Int[np.ndarray, " some"]) -> Int64[np.ndarray, " chosen"]:
        """The visits in some windows."""
        return np.flatnonzero(np.isin(self.windows[self.begins], windows))


class Memory:
    """Takes windows in, in order.

    Attributes:
        item_ids, user_ids: by number; item i is catalogue row i + 1.
        first: number of the first window.
        sizes: events of each window.
        totals: items so far, at each window's end.
    """

    def __init__(self, config: StreamConfig, first: int = 1) -> None:
        self._config = config
        self.first = first
        self._rows: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.sizes: list[int] = []
        self.totals: list[int] = []

    @property
    def item_ids(self) -> list[str]:
        return list(self._rows)

    @property
    def user_ids(self) -> list[str]:
        return list(self._numbers)

    @property
    def num_items(self) -> int:
        """Items so far."""
        return len(self._rows)

    @property
    def num_users(self) -> int:
        """Users so far."""
        return len(self._numbers)

    def add(self, window: Window) -> list[str]:
        """Takes a window in; returns the items that it is the first to have."""
        before = self.num_items
        items = _numbered(self._rows, window.events["item"], first=1)
        users = _numbered(self._numbers, window.events["user"], first=0)
        self._parts.append((users, items, _validating(users, self._config)))
        self.sizes.append(len(window))
        self.totals.append(self.num_items)
        self.__dict__.pop("events", None)
        return self.item_ids[before:]

    @functools.cached_property
    def events(self) -> Events:
        """All events so far."""
        users, items, valid = (np.concatenate(parts) for parts in zip(*self._parts, strict=True))
        windows = np.repeat(np.arange(len(self._parts), dtype=np.int32) + self.first, self.sizes)
        order = np.argsort(users, kind="stable")  # windows come in order of time, and so do their events
        users, items, windows, valid = users[order], items[order], windows[order], valid[order]
        begins = np.flatnonzero(np.diff(users, prepend=-1) | np.diff(windows, prepend=-1))
        stops = np.append(begins[1:], len(users))
        return Events(
            items,
            windows,
            valid,
            offsets_of(np.bincount(users, minlength=self.num_users)),
            begins,
            stops,
            stops - np.add.reduceat(valid, begins, dtype=np.int64),
            users[begins],
        )


def _numbered(known: dict[str, int], ids: pl.Series, first: int) -> Int32[np.ndarray, " event"]:
    """Numbers of ids; those that are not known get the next ones, in order of appearance."""
    different = ids.unique(maintain_order=True)
    for name in different.to_list():
        known.setdefault(name, len(known) + first)
    numbers = [known[name] for name in different.to_list()]
    return ids.replace_strict(different, numbers, return_dtype=pl.Int32).to_numpy()


def _validating(users: Int32[np.ndarray, " event"], config: StreamConfig) -> Bool[np.ndarray, " event"]:
    """Which events of a window validate: its last ones in time, or the last ones of each user."""
    count = len(users)
    if config.validation == "slice":
        return np.arange(count) >= count - max(round(count * config.valid_fraction), 1)
    order = np.argsort(users, kind="stable")
    _, dense, counts = np.unique(users[order], return_inverse=True, return_counts=True)
    from_end = position_from_end(dense.astype(np.int32))
    chosen = np.empty(count, bool)
    chosen[order] = from_end < np.round(counts * config.valid_fraction)[dense]
    return chosen
