"""What the evaluator asks of a model, and the popularity baseline."""

from __future__ import annotations

from typing import Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mmrec_jax.evaluation.catalogue import ItemVectorsOf


class Scorer(Protocol):
    """A model whose score of an item for a user is the dot product of their vectors."""

    def user_vectors(self, inputs: Int[np.ndarray, "user length"]) -> Float[Array, "user width"]:
        """Vectors of users by their last items: catalogue rows in time order, padded with 0 on the left."""

    def item_vectors(self) -> ItemVectorsOf:
        """One vector a catalogue row; what row 0 (padding) holds does not matter."""


class PopularityScorer:
    """Every user gets the items with the most training interactions. Equally popular items tie."""

    def __init__(self, popularity: Int[np.ndarray, " row"]) -> None:
        """Score items by their training interactions, `popularity[row]`; row 0 is padding."""
        # The place among the distinct counts instead of the count: exact in float32 for any count.
        self._scores = np.unique(popularity, return_inverse=True)[1].astype(np.float32)

    def user_vectors(self, inputs: Int[np.ndarray, "user length"]) -> Float[Array, "user 1"]:
        """The same vector for everyone."""
        return jnp.ones((len(inputs), 1), jnp.float32)

    def item_vectors(self) -> Float[Array, "row 1"]:
        """The score of each item."""
        return jnp.asarray(self._scores)[:, None]
