"""Item vectors from a trained table of ids, alone or added to what content says."""

from __future__ import annotations

from dataclasses import replace

import flax.linen as nn
from jaxtyping import Array, Int

from mmrec_jax.types import HiddenStates, ItemVectors


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
        if self.has_variable("params", "embedding"):
            # As it is: over a mesh it has further rows, so that the devices divide it, which nobody reads.
            return ItemVectors(self.get_variable("params", "embedding")[items])
        table = self.param("embedding", nn.initializers.normal(0.02), (self.rows, self.width))
        return ItemVectors(table[items])


class IdsAndContent(nn.Module):
    """The sum of an item's vector by content and one of its own.

    Attributes:
        content: encoder of hidden states.
        ids: the table.
    """

    content: nn.Module
    ids: IdTable

    @nn.compact
    def __call__(self, hidden: HiddenStates, items: Int[Array, " item"]) -> ItemVectors:
        """The sums, and the weights that the content's modalities have among themselves."""
        content = self.content(hidden)
        return replace(content, vector=content.vector + self.ids(items).vector)
