"""Hidden states of the items that a stream has brought, in arrays with room for more: new items compile nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from mmrec_jax.store.table import StateTable

StatesOf = Callable[[Sequence[str]], StateTable]
"""The states of some items, in rows 1, 2, ... below a row of padding."""


class PaddedTable:
    """A `StateTable` that grows in place.

    It never promises to be complete: an item without a modality may come any time.

    Args:
        states: gives the states of items by id.
        capacity: items that are made room for.
    """

    def __init__(self, states: StatesOf, capacity: int) -> None:
        self._states = states
        self.capacity = capacity
        self.num_items = 0
        self._arrays: Any = None
        self._table: StateTable | None = None

    def add(self, item_ids: Sequence[str]) -> bool:
        """Appends items; returns whether the arrays had to be made larger (twice, until they hold all)."""
        if not item_ids:
            return False
        found = self._states(item_ids)
        new = jax.tree.map(lambda leaf: np.asarray(leaf)[1:], (found.values, found.scales, found.present))
        grown, first = self.num_items + len(item_ids) > self.capacity, self._arrays is None
        while self.num_items + len(item_ids) > self.capacity:
            self.capacity *= 2
        if first:
            self._arrays = jax.tree.map(self._room, new)
        elif grown:
            self._arrays = jax.tree.map(self._larger, self._arrays)
        rows = slice(self.num_items + 1, self.num_items + 1 + len(item_ids))
        jax.tree.map(lambda array, added: array.__setitem__(rows, added), self._arrays, new)
        self.num_items += len(item_ids)
        self._table = None
        return grown and not first

    @property
    def table(self) -> StateTable:
        """All rows, unused ones among them (zeros, with no modality)."""
        if self._table is None:
            # Copies: on a CPU the device may share the memory of arrays that are written to later.
            self._table = StateTable(*jax.tree.map(lambda array: jnp.array(array, copy=True), self._arrays))
        return self._table

    @property
    def present(self) -> dict[str, Bool[np.ndarray, " row"]]:
        """Which rows have each modality."""
        return self._arrays[2]

    def first(self, items: int) -> StateTable:
        """The rows of the first items alone, for what is measured of them."""
        arrays = jax.tree.map(lambda array: jnp.asarray(array[: items + 1].copy()), self._arrays)
        return StateTable(*arrays)

    def _room(self, like: np.ndarray) -> np.ndarray:
        return np.zeros((self.capacity + 1, *like.shape[1:]), like.dtype)

    def _larger(self, array: np.ndarray) -> np.ndarray:
        larger = self._room(array)
        larger[: len(array)] = array
        return larger
