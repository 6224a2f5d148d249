"""What the top-k lists of all users say together: catalogue coverage and average popularity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int


class ListStatistics:
    """Collects top-k lists block by block; its size does not grow with the number of users."""

    def __init__(
        self, popularity: Int[np.ndarray, " row"], k: int, candidates: Bool[np.ndarray, " row"] | None = None
    ) -> None:
        """Begin with no lists.

        Args:
            popularity: training interactions of each catalogue row; row 0 is padding.
            k: length of the lists to come.
            candidates: rows that can be listed; None for all but the padding.
        """
        self._candidates = np.arange(len(popularity)) > 0 if candidates is None else candidates
        self._popularity = popularity
        self._places = np.arange(k)
        self._best_place = np.full(len(popularity), k)
        self._interactions = np.zeros(k)
        self._listed = np.zeros(k, np.int64)

    def update(self, items: Int[np.ndarray, "user k"]) -> None:
        """Add lists of catalogue rows, best first; row 0 fills lists that are short."""
        np.minimum.at(self._best_place, items, np.broadcast_to(self._places, items.shape))
        self._interactions += self._popularity[items].sum(axis=0)
        self._listed += (items > 0).sum(axis=0)

    def metrics(self, ks: Sequence[int]) -> dict[str, float]:
        """Coverage@k: share of the candidates that are in at least one user's first k.

        Popularity@k: mean number of training interactions of the items in the first k.
        """
        coverage = {f"Coverage@{k}": float(np.mean(self._best_place[self._candidates] < k)) for k in ks}
        popularity = {
            f"Popularity@{k}": float(self._interactions[:k].sum() / max(self._listed[:k].sum(), 1)) for k in ks
        }
        return coverage | popularity
