"""Groups of examples whose metrics are reported on their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int64

from mmrec_jax.evaluation.metrics import grouped_metrics


@dataclass(frozen=True)
class Slicing:
    """One way to split the examples.

    Attributes:
        title: what they are split by.
        names: the groups.
        groups: each example's group, as an index into `names`.
    """

    title: str
    names: tuple[str, ...]
    groups: Int64[np.ndarray, " example"]

    def metrics(self, ranks: Int[np.ndarray, " example"], ks: Sequence[int]) -> dict[str, dict[str, float]]:
        """Each group's metrics and its "count"; a group without examples has the count only."""
        counts = np.bincount(self.groups, minlength=len(self.names)).tolist()
        values = grouped_metrics(ranks, self.groups, len(self.names), ks)
        return {name: {"count": count, **group} for name, count, group in zip(self.names, counts, values, strict=True)}


def by_popularity(popularity: Int[np.ndarray, " row"], targets: Int[np.ndarray, " example"]) -> Slicing:
    """By the held-out item: new (no training interaction), tail, mid or head.

    Items are ordered by training interactions; the most popular ones that together have the first third of
    all interactions are the head, those of the second third mid, the others tail. Equally popular items go
    together, into the group where the first of them falls.
    """
    counts, inverse, items = np.unique(popularity[1:], return_inverse=True, return_counts=True)
    interactions = counts * items
    more_popular = (interactions.sum() - np.cumsum(interactions)) / max(interactions.sum(), 1)
    group = np.where(counts == 0, 0, 3 - np.minimum(np.floor(3 * more_popular), 2)).astype(np.int64)
    return Slicing("popularity", ("new", "tail", "mid", "head"), group[inverse][targets - 1])


def by_history_length(lengths: Int[np.ndarray, " example"], edges: Sequence[int]) -> Slicing:
    """By the number of events before the held-out one; a bucket begins at 0 and at each edge."""
    lower = [0, *edges]
    names = [_span(low, high - 1) for low, high in zip(lower, edges, strict=False)] + [f"{lower[-1]}+"]
    return Slicing("history", tuple(names), np.searchsorted(edges, lengths, side="right"))


def by_modalities(present: Mapping[str, Bool[np.ndarray, " row"]], targets: Int[np.ndarray, " example"]) -> Slicing:
    """By the modalities that the held-out item has, named like "image+text"; only patterns that occur."""
    names = sorted(present)
    if len(names) > 62:
        raise ValueError(f"{len(names)} modalities: patterns of more than 62 are not told apart")
    codes = sum(np.asarray(present[name])[targets].astype(np.int64) << i for i, name in enumerate(names))
    patterns, groups = np.unique(codes, return_inverse=True)
    labels = ["+".join(n for i, n in enumerate(names) if code >> i & 1) or "none" for code in patterns.tolist()]
    return Slicing("modalities", tuple(labels), groups)


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"
