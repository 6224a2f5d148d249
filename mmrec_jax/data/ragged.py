"""Rows of unequal length in two flat arrays (compressed sparse rows)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32, Int64


@dataclass(frozen=True)
class Ragged:
    """n rows of unequal length: row i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: all rows one after another.
        offsets: where each row begins; the last entry is the total.
    """

    values: Int32[np.ndarray, " total"]
    offsets: Int64[np.ndarray, " rows_and_one"]

    @classmethod
    def of_lengths(cls, values: Int[np.ndarray, " total"], lengths: Int[np.ndarray, " rows"]) -> Ragged:
        """Rows of the given lengths over flat values."""
        return cls(values.astype(np.int32, copy=False), offsets_of(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, " rows"]:
        """Number of values in each row."""
        return np.diff(self.offsets)

    def rows(self, index: int) -> Int32[np.ndarray, " length"]:
        """The values of one row."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def take(self, indices: Int[np.ndarray, " taken"]) -> Ragged:
        """The rows at `indices`, in that order, as a Ragged of their own."""
        lengths = self.lengths[indices]
        offsets = offsets_of(lengths)
        source = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][indices] - offsets[:-1], lengths)
        return Ragged(self.values[source], offsets)

    def last(self, indices: Int[np.ndarray, " taken"], length: int) -> Int32[np.ndarray, "taken {length}"]:
        """The last `length` values of the rows at `indices`, padded with 0 on the left."""
        return left_padded(self.values, self.offsets[indices], self.offsets[np.asarray(indices) + 1], length)


def offsets_of(lengths: Int[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows_and_one"]:
    """Where rows of these lengths begin in a flat array, and the total."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def left_padded(
    values: Int32[np.ndarray, " total"],
    starts: Int64[np.ndarray, " rows"],
    stops: Int64[np.ndarray, " rows"],
    length: int,
) -> Int32[np.ndarray, "rows {length}"]:
    """The last `length` values of each span [start, stop), padded with 0 on the left."""
    if not len(values):
        return np.zeros((len(starts), length), np.int32)
    source = stops[:, None] + np.arange(-length, 0)
    inside = source >= starts[:, None]
    return np.where(inside, values[np.where(inside, source, 0)], np.int32(0))


def joined(first: Ragged, second: Ragged) -> Ragged:
    """Row by row, the values of `first` and then those of `second`."""
    offsets = first.offsets + second.offsets
    values = np.empty(offsets[-1], np.int32)
    values[np.arange(len(first.values)) + np.repeat(second.offsets[:-1], first.lengths)] = first.values
    values[np.arange(len(second.values)) + np.repeat(first.offsets[1:], second.lengths)] = second.values
    return Ragged(values, offsets)
