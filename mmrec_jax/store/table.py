"""The hidden states of a catalogue in memory, as the training step reads them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Num

from mmrec_jax.shards import Shards
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
        shards: of a table whose rows are split over the devices of a mesh.
    """

    values: dict[str, tuple[Num[Array, "row width"], ...]]
    scales: dict[str, tuple[Float[Array, " row"], ...]]
    present: dict[str, Bool[Array, " row"]]
    complete: bool = struct.field(pytree_node=False, default=False)
    shards: Shards | None = struct.field(pytree_node=False, default=None)

    def rows(self, items: Int[Array, " item"], own: bool = False) -> HiddenStates:
        """The states of some rows as float32: one gather a layer. Rows must lie in the table.

        Args:
            items: rows.
            own: over a mesh, whether each part of them lies on the devices of that part; see `Shards.take`.
        """
        arrays, structure = jax.tree.flatten((self.values, self.scales, self.present))
        if self.shards is None:
            found = [_take(array, items) for array in arrays]
        else:
            found = list(self.shards.take(arrays, items, own))
        values, scales, present = jax.tree.unflatten(structure, found)
        return StateTable(values, scales, present, self.complete).whole()

    def whole(self) -> HiddenStates:
        """The states of all rows as float32."""
        return HiddenStates(
            values={name: _states(layers, self.scales.get(name)) for name, layers in self.values.items()},
            present=self.present,
            complete=self.complete,
        )

    @property
    def num_rows(self) -> int:
        """Items plus the padding row."""
        return next(iter(self.present.values())).shape[0]

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, in bytes."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self))


def _states(
    layers: tuple[Num[Array, "item width"], ...], scales: tuple[Float[Array, " item"], ...] | None
) -> tuple[Float[Array, "item width"], ...]:
    """Stored values as float32."""
    if scales is None:
        return tuple(layer.astype(jnp.float32) for layer in layers)
    return tuple(layer.astype(jnp.float32) * scale[:, None] for layer, scale in zip(layers, scales, strict=True))


def _take(array: Array, items: Int[Array, " item"]) -> Array:
    return array.at[items].get(mode="promise_in_bounds")
