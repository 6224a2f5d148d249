"""Bootstrap over users: confidence intervals of one model's metrics, and of the difference of two models.

Users are resampled with replacement. Metrics depend on a user only through the cell of `gain_table` that the
rank falls in, so a resample is drawn as a multinomial count of the cells (of pairs of cells for two models),
which has the same distribution as an index per user and a cost that does not grow with the number of users.
Where a user has several examples, they are drawn together, user by user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

from mmrec_jax.evaluation.metrics import gain_table, metric_names, rank_cells

_MOST_DRAWN = 4_000_000  # counts that are held at once


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much larger a metric of the first model is than the second's, on the same examples.

    Attributes:
        mean: the difference itself.
        low, high: its confidence interval.
        p_value: two-sided. Of resamples: twice the share on the rarer side of 0 (0 itself counts on both
            sides), with one added to share and resamples so that it is never 0, and at most 1. Of several seeds:
            see `noise.p_value`.
    """

    mean: float
    low: float
    high: float
    p_value: float


def intervals(
    ranks: Int[np.ndarray, " example"],
    ks: Sequence[int],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """An interval of every metric at every cut-off."""
    means = _resampled_means(rank_cells(ranks, ks), gain_table(ks), resamples, seed)
    low, high = percentiles(means, confidence)
    return {name: Interval(a, b) for name, a, b in zip(metric_names(ks), low.tolist(), high.tolist(), strict=True)}


def differences(
    first: Int[np.ndarray, " example"],
    second: Int[np.ndarray, " example"],
    ks: Sequence[int],
    *,
    users: np.ndarray | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Difference]:
    """Paired differences of every metric, from two models' ranks of the same examples in the same order.

    Args:
        users: whose each example is; None where each is of another. A user's examples are resampled together.
    """
    table = gain_table(ks)
    cells = len(table)
    gains = (table[:, None] - table[None]).reshape(cells * cells, -1)
    pairs = rank_cells(first, ks) * cells + rank_cells(second, ks)
    if users is None or len(np.unique(users)) == len(users):
        means = _resampled_means(pairs, gains, resamples, seed)
    else:
        means = _resampled_users(gains[pairs], users, resamples, seed)
    observed = np.bincount(pairs, minlength=len(gains)) @ gains / len(pairs)
    return dict(zip(metric_names(ks), difference_of(observed, means, confidence), strict=True))


def difference_of(
    observed: Float64[np.ndarray, " metric"], resampled: Float64[np.ndarray, "resample metric"], confidence: float
) -> list[Difference]:
    """Each metric's difference, from the observed ones and those of all resamples."""
    low, high = percentiles(resampled, confidence)
    rarer = np.minimum((resampled <= 0).sum(axis=0), (resampled >= 0).sum(axis=0))
    p_values = np.minimum(2 * (rarer + 1) / (len(resampled) + 1), 1)
    columns = (observed.tolist(), low.tolist(), high.tolist(), p_values.tolist())
    return [Difference(*values) for values in zip(*columns, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's method: below 5%, the chance of any false finding is at most 5%.

    That is by the noise which the p-values know of: users only where each model has one seed.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted.tolist()


def percentiles(
    means: Float64[np.ndarray, "resample metric"], confidence: float
) -> Float64[np.ndarray, "bound metric"]:
    """The lower and the upper end of each metric's percentile interval."""
    return np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)


def _resampled_means(
    cells: Int[np.ndarray, " example"], gains: Float64[np.ndarray, "cell metric"], resamples: int, seed: int
) -> Float64[np.ndarray, "resample metric"]:
    occurring, counts = np.unique(cells, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(cells), counts / len(cells), size=resamples)
    return drawn @ gains[occurring] / len(cells)


def _resampled_users(
    gains: Float64[np.ndarray, "example metric"], users: np.ndarray, resamples: int, seed: int
) -> Float64[np.ndarray, "resample metric"]:
    """Means over the examples of resampled users."""
    _, places, counts = np.unique(users, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(places, column) for column in gains.T], axis=1)
    rng, even = np.random.default_rng(seed), np.full(len(counts), 1 / len(counts))
    parts = []
    for start in range(0, resamples, each := max(_MOST_DRAWN // len(counts), 1)):
        drawn = rng.multinomial(len(counts), even, size=min(each, resamples - start))
        parts.append(drawn @ sums / (drawn @ counts)[:, None])
    return np.concatenate(parts)
