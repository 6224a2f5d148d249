"""Metrics as functions of ranks.

Every example has one held-out item, so each metric is the mean of a gain that depends on that item's rank
alone. It is hence a linear function of the histogram of ranks, from which means, slices and resamples are
computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int, Int64

Gain = Callable[[np.ndarray], np.ndarray]

GAINS: dict[str, Gain] = {
    "HR": np.ones_like,
    "NDCG": lambda rank: 1 / np.log2(1 + rank),
    "MRR": lambda rank: 1 / rank,
    "Recall": np.ones_like,
}
"""Gain of a hit at each rank; 0 below the cut-off. With a single held-out item recall is the hit ratio."""


def metric_names(ks: Sequence[int]) -> list[str]:
    """ "HR@10" and so on, in the order of `gain_table`'s columns."""
    return [f"{metric}@{k}" for metric in GAINS for k in ks]


def gain_table(ks: Sequence[int]) -> Float64[np.ndarray, "cell metric"]:
    """What rank `cell + 1` adds to each metric; the last cell stands for all ranks beyond max(ks)."""
    rank = np.arange(1, max(ks) + 2, dtype=np.float64)
    return np.stack([np.where(rank <= k, gain(rank), 0) for gain in GAINS.values() for k in ks], axis=1)


def rank_cells(ranks: Int[np.ndarray, " example"], ks: Sequence[int]) -> Int64[np.ndarray, " example"]:
    """The row of `gain_table` that each rank belongs to."""
    return np.minimum(ranks, max(ks) + 1).astype(np.int64) - 1


def metrics(ranks: Int[np.ndarray, " example"], ks: Sequence[int]) -> dict[str, float]:
    """Mean of every metric at every cut-off over at least one rank, as fractions of 1.

    HR@k: share of ranks up to k. NDCG@k: 1 / log2(1 + rank) up to k (the ideal gain is 1). MRR@k: 1 / rank up
    to k.
    """
    return dict(zip(metric_names(ks), _means(rank_cells(ranks, ks), gain_table(ks)), strict=True))


def grouped_metrics(
    ranks: Int[np.ndarray, " example"], groups: Int[np.ndarray, " example"], count: int, ks: Sequence[int]
) -> list[dict[str, float]]:
    """`metrics` of each of `count` groups of examples; {} for a group without examples."""
    table = gain_table(ks)
    histogram = np.bincount(groups * len(table) + rank_cells(ranks, ks), minlength=count * len(table))
    names = metric_names(ks)
    return [
        dict(zip(names, (cells @ table / cells.sum()).tolist(), strict=True)) if cells.any() else {}
        for cells in histogram.reshape(count, len(table))
    ]


def _means(cells: Int64[np.ndarray, " example"], table: Float64[np.ndarray, "cell metric"]) -> list[float]:
    return (np.bincount(cells, minlength=len(table)) @ table / len(cells)).tolist()
