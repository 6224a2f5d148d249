"""The items that users are ranked over: their vectors in one array, or split over devices."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from mmrec_jax.errors import EvaluationError


@runtime_checkable
class SplitCatalogue(Protocol):
    """Item vectors of which each device has some; `parallel.topk` has the one for meshes.

    It stands where an array of item vectors may: what the array's users are scored by, it does itself.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Catalogue rows, the padding row 0 among them, and the width."""

    @property
    def rows_at_once(self) -> int:
        """Rows that one device scores."""

    def norms(self) -> Float[np.ndarray, " row"]:
        """Length of each row's vector."""

    def ranked(
        self,
        vectors: Float[Array, "example width"],
        targets: Int[np.ndarray, " example"],
        pair_rows: Int32[np.ndarray, "inner pair"],
        pair_items: Int32[np.ndarray, "inner pair"],
        k: int,
        candidates: Bool[np.ndarray, " row"] | None = None,
    ) -> tuple[Int[Array, " example"], Int[Array, "example k"]]:
        """Ranks and top-k lists of a block of users, as `ranking.ranked_blocks` tells."""

    def listed(
        self,
        vectors: Float[Array, "user width"],
        pair_rows: Int32[np.ndarray, "inner pair"],
        pair_items: Int32[np.ndarray, "inner pair"],
        k: int,
    ) -> tuple[Float[Array, "user k"], Int[Array, "user k"]]:
        """Scores and catalogue rows of the best k, as `topk.top_items` tells."""


ItemVectorsOf = Float[Array, "row width"] | SplitCatalogue
"""What users are ranked over."""


def rows_at_once(items: ItemVectorsOf) -> int:
    """Rows whose scores a device holds at the same time."""
    return items.rows_at_once if isinstance(items, SplitCatalogue) else items.shape[0]


def largest_norm(items: ItemVectorsOf) -> float:
    """The longest item vector's length.

    Raises:
        EvaluationError: vectors are not finite.
    """
    if isinstance(items, SplitCatalogue):  # noqa: SIM108 - the type checker follows this form
        norms = items.norms()[1:]
    else:
        norms = np.asarray(jnp.linalg.norm(items[1:], axis=1))
    broken = np.flatnonzero(~np.isfinite(norms)) + 1
    if len(broken):
        raise EvaluationError(
            f"{len(broken)} item vectors are not finite, first in catalogue rows {broken[:5].tolist()}: "
            "look for NaN in these items' hidden states or in the checkpoint"
        )
    return float(norms.max(initial=0))
