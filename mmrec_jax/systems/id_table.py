"""Item vectors from a trained table: the item side of an ID-only SASRec."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Int

from mmrec_jax.types import ItemVectors


class IdTable(nn.Module):
    """One trained vector a catalogue row.

    Attributes:
        rows: number of items plus one (row 0 is padding).
        width: of the vectors.
    """

    rows: int
    width: int = 64

    @nn.compact
    def __call__(self, items: Int[Array, " item"]) -> ItemVectors:
        """The vectors of the given catalogue rows."""
        table = self.param("embedding", nn.initializers.normal(0.02), (self.rows, self.width))
        return ItemVectors(table[items])
