"""The hidden states of a catalogue in memory, as the training step reads them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Num

from mmrec_jax.types import HiddenStates


@struct.dataclass
class StateTable:
    """Pooled hidden states of all items, in catalogue order after the padding row 0. A pytree.

    Each layer is an array of its own: a side block reads one layer, and XLA's CPU backend is twice as fast
    on whole arrays as on slices of a stacked one.

    Attributes:
        values: modality -> one array a selected layer in the store's type; int8 ones are multiplied by their
            scale when read.
        scales: modality -> scale of each vector, one array a layer; only int8 modalities have an entry.
        present: modality -> whether the item has it; False for row 0.
        complete: whether every item (row 0 aside) has every modality.
    """

    values: dict[str, tuple[Num[Array, "row width"], ...]]
    scales: dict[str, tuple[Float[Array, " row"], ...]]
    present: dict[str, Bool[Array, " row"]]
    complete: bool = struct.field(pytree_node=False, default=False)

    def rows(self, items: Int[Array, " item"]) -> HiddenStates:
        """The states of some rows as float32: one gather a layer. Rows must lie in the table."""
        return HiddenStates(
            values={name: self._states(name, items) for name in self.values},
            present={name: _take(present, items) for name, present in self.present.items()},
            complete=self.complete,
        )

    def _states(self, name: str, items: Int[Array, " item"]) -> tuple[Float[Array, "item width"], ...]:
        states = tuple(_take(layer, items).astype(jnp.float32) for layer in self.values[name])
        if name not in self.scales:
            return states
        scales = (_take(scale, items)[:, None] for scale in self.scales[name])
        return tuple(state * scale for state, scale in zip(states, scales, strict=True))

    @property
    def num_rows(self) -> int:
        """Items plus the padding row."""
        return next(iter(self.present.values())).shape[0]

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, in bytes."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


def _take(array: Array, items: Int[Array, " item"]) -> Array:
    return array.at[items].get(mode="promise_in_bounds")
