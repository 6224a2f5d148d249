"""The catalogue's hidden states on the device, one array a layer, rows in catalogue order."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.types import HiddenStates


@struct.dataclass
class StateTable:
    """Frozen states of all items; row 0 is padding and holds zeros.

    Each layer is an array of its own: a side block reads one layer, and XLA's CPU backend is twice as fast on whole
    arrays as on slices of a stacked one.

    Attributes:
        values: modality -> one array a selected layer, in the store's dtype (float32, bfloat16 or int8).
        scales: modality -> one scale a vector and layer, for int8 tables; modalities of another dtype are absent.
        present: modality -> whether the row has it.
        complete: every real row has every modality.
    """

    values: dict[str, tuple[Array, ...]]
    scales: dict[str, tuple[Float[Array, " row"], ...]]
    present: dict[str, Bool[Array, " row"]]
    complete: bool = struct.field(pytree_node=False, default=False)

    def rows(self, items: Int[Array, " item"]) -> HiddenStates:
        """States of some catalogue rows as float32."""
        return HiddenStates(
            values={name: self._layers(name, items) for name in self.values},
            present={name: mask[items] for name, mask in self.present.items()},
            complete=self.complete,
        )

    def _layers(self, name: str, items: Int[Array, " item"]) -> tuple[Float[Array, "item width"], ...]:
        layers = tuple(layer[items].astype(jnp.float32) for layer in self.values[name])
        if name not in self.scales:
            return layers
        return tuple(x * s[items][:, None] for x, s in zip(layers, self.scales[name], strict=True))
