"""Which rows of a batch a process makes: those that its devices take, of arrays whose other rows are made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class OwnRows:
    """A host array of which some parts are here; a leaf in a tree of arrays, until it is put on devices.

    Attributes:
        length: of the first axis of the whole array.
        parts: first row -> rows that are here.
    """

    length: int
    parts: Mapping[int, np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        return self.length, *self._any.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """Of its elements."""
        return self._any.dtype

    @property
    def nbytes(self) -> int:
        """Of what is here."""
        return sum(part.nbytes for part in self.parts.values())

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """A part by its place in the whole array."""
        start, stop, _ = index[0].indices(self.length)
        found = self.parts.get(start)
        if found is None or len(found) != stop - start:
            raise KeyError(f"rows {start} to {stop} of {self.length} were not made here, but {sorted(self.parts)}")
        return found

    @property
    def _any(self) -> np.ndarray:
        return next(iter(self.parts.values()))


@dataclass(frozen=True)
class Share:
    """Of a batch's equal parts, those that are made here.

    Attributes:
        groups: number of parts.
        own: which of them; None for all.
    """

    groups: int = 1
    own: tuple[int, ...] | None = None

    def of(self, size: int, make: Callable[[slice], T]) -> T:
        """The arrays of an axis of `size` rows.

        Args:
            size: rows of the whole axis, a multiple of the groups unless all is made here.
            make: a range of rows -> a tree of arrays of these rows.

        Returns:
            A tree with an `OwnRows` for each array, and with the arrays themselves where all is made here.
        """
        import jax  # the stream of batches need not wait for it

        if self.own is None:
            return make(slice(0, size))
        each = size // self.groups
        starts = [group * each for group in self.own]
        made: list[Any] = [make(slice(start, start + each)) for start in starts]
        return jax.tree.map(lambda *parts: OwnRows(size, dict(zip(starts, parts, strict=True))), *made)


WHOLE = Share()
