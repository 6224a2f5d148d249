"""The rows of a training epoch, and the events of a batch of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from mmrec_jax.data.prepared import PreparedData
from mmrec_jax.data.ragged import left_padded
from mmrec_jax.errors import ConfigError


@dataclass(frozen=True)
class Chosen:
    """Rows of a step.

    Attributes:
        events, inputs, users: of each row, see `Rows`.
        items: the distinct items, ascending after the padding row, which leads even where no row has any.
        counts: how often each occurs; 0 for padding.
    """

    events: Int32[np.ndarray, "chosen width"]
    inputs: Bool[np.ndarray, "chosen width-1"]
    users: Int32[np.ndarray, " chosen"]
    items: Int32[np.ndarray, " distinct"]
    counts: Int64[np.ndarray, " distinct"]


@dataclass(frozen=True)
class Rows:
    """Spans of the training events, one a row of an epoch.

    Attributes:
        values: all training events.
        users: whose events each row shows.
        starts, stops: where the row's events begin and end in `values`.
        width: most events a row can show.
        targets: how many of each row's last events are to be predicted; None = all but the first.
    """

    values: Int32[np.ndarray, " event"]
    users: Int32[np.ndarray, " row"]
    starts: Int64[np.ndarray, " row"]
    stops: Int64[np.ndarray, " row"]
    width: int
    targets: Int64[np.ndarray, " row"] | None = None

    def __len__(self) -> int:
        return len(self.users)

    def events(self, chosen: Int[np.ndarray, " chosen"]) -> Int32[np.ndarray, "chosen width"]:
        """Item rows of the chosen rows' events, padded with 0 on the left."""
        return left_padded(self.values, self.starts[chosen], self.stops[chosen], self.width)

    def chosen(self, chosen: Int[np.ndarray, " chosen"]) -> Chosen:
        """What a batch of the chosen rows is made of."""
        events = self.events(chosen)
        # Sorting and searching takes a fifth of the time of `np.unique` with its inverse.
        ordered = np.sort(events, axis=None)
        firsts = np.flatnonzero(np.diff(ordered, prepend=0) > 0)
        items = np.append(np.int32(0), ordered[firsts])
        counts = np.append(0, np.diff(firsts, append=len(ordered)))
        return Chosen(events, self.inputs(chosen), self.users[chosen], items, counts)

    def inputs(self, chosen: Int[np.ndarray, " chosen"]) -> Bool[np.ndarray, "chosen width-1"]:
        """Which events of the chosen rows, the last left out, are followed by one that is to be predicted."""
        return np.arange(self.width - 1) >= self.width - 1 - self.lengths[chosen, None]

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, " row"]:
        """How many inputs each row has."""
        lengths = self.stops - self.starts - 1
        return lengths if self.targets is None else np.minimum(lengths, self.targets)


def training_rows(prepared: PreparedData, length: int, window: str) -> Rows:
    """The rows of an epoch: spans of at most `length` + 1 training events (inputs and targets).

    Args:
        prepared: the data.
        length: inputs a row.
        window: "last" gives each user's last events, one row a user; "chunks" cuts a user's events into rows
            from the end backwards, each beginning with the last event of the one before, so that every event
            but a user's first is a target exactly once.

    Returns:
        The rows by user and time. A user with fewer than 2 training events has none.
    """
    if window not in ("last", "chunks"):
        raise ConfigError(f"window is {window!r}; it must be 'last' or 'chunks'.")
    if length < 1:
        raise ConfigError(f"length is {length}; a row needs at least 1 input.")
    train = prepared.train
    users = np.flatnonzero(train.lengths >= 2).astype(np.int32)
    targets = train.lengths[users] - 1
    number = -(-targets // length) if window == "chunks" else np.ones(len(users), np.int64)
    from_end = np.repeat(np.cumsum(number), number) - 1 - np.arange(number.sum())
    users = np.repeat(users, number)
    stops = train.offsets[users + 1] - from_end * length
    starts = np.maximum(train.offsets[users], stops - length - 1)
    return Rows(train.values, users, starts, stops, length + 1)


def distinct_counts(events: Int32[np.ndarray, "rows width"], shards: int) -> Int64[np.ndarray, " {shards}"]:
    """How many entries of `SequenceBatch.items` each process's share needs: distinct items and the padding.

    Args:
        events: the rows of a step for all processes; process i has rows i, i + shards, ...
        shards: number of processes.
    """
    shares = np.sort(_shares(events, shards), axis=1)
    return 1 + np.count_nonzero(np.diff(shares, axis=1, prepend=0), axis=1)


def step_counts(inputs: Bool[np.ndarray, "rows length"], shards: int) -> Int64[np.ndarray, " {shards}"]:
    """How many entries of `SequenceBatch.steps` each process's share needs: inputs that have a target."""
    return np.count_nonzero(_shares(inputs, shards), axis=1)


def _shares(events: Int[np.ndarray, "rows width"] | Bool[np.ndarray, "rows width"], shards: int) -> np.ndarray:
    """The events of each process's rows, with 0 where one has a row fewer than another."""
    each = -(-len(events) // shards)
    everyone = np.zeros((each * shards, events.shape[1]), events.dtype)
    everyone[: len(events)] = events
    return everyone.reshape(each, shards, -1).swapaxes(0, 1).reshape(shards, -1)
