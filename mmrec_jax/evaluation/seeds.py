"""Models that were trained with several seeds each, on the same examples: means, their intervals, paired differences.

With several seeds an interval covers the noise of the users and that of training, see `evaluation.noise`; with one it
is a bootstrap over users, and says nothing of training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from mmrec_jax.evaluation.metrics import gain_table, metric_names, rank_cells
from mmrec_jax.evaluation.noise import half_width, noise, p_value, sample
from mmrec_jax.evaluation.significance import Difference, differences, intervals

Ranks = Int[np.ndarray, "seed example"]


@dataclass(frozen=True)
class SeedMean:
    """A metric's mean over seeds.

    Attributes:
        mean: of all examples and seeds.
        low, high: its confidence interval.
        seeds: the metric of each seed.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]


def seed_means(
    ranks: Ranks, ks: Sequence[int], *, confidence: float = 0.95, resamples: int = 1000
) -> dict[str, SeedMean]:
    """Each metric's mean with its interval.

    Args:
        ranks: of a model in the run of each seed.
        ks: cut-offs.
        confidence: coverage of the intervals.
        resamples: behind the interval of a single seed.
    """
    table, cells = gain_table(ks), rank_cells(ranks, ks)
    observed = np.stack([np.bincount(row, minlength=len(table)) @ table / len(row) for row in cells])
    means = observed.mean(axis=0)
    if len(ranks) == 1:
        spans = intervals(ranks[0], ks, resamples=resamples, confidence=confidence)
        low, high = (np.array([getattr(span, end) for span in spans.values()]) for end in ("low", "high"))
    else:
        wide = half_width(noise(sample(table[row] for row in cells)), 1 - confidence)
        low, high = np.maximum(means - wide, 0), np.minimum(means + wide, 1)
    columns = (means.tolist(), low.tolist(), high.tolist(), observed.T.tolist())
    return {
        name: SeedMean(mean, below, above, tuple(seeds))
        for name, mean, below, above, seeds in zip(metric_names(ks), *columns, strict=True)
    }


def seed_differences(
    first: Ranks,
    second: Ranks,
    ks: Sequence[int],
    *,
    paired: bool = False,
    confidence: float = 0.95,
    resamples: int = 1000,
) -> dict[str, Difference]:
    """Differences of the means of two models, first minus second, on the same examples.

    Args:
        first, second: ranks of the models in the run of each seed.
        ks: cut-offs.
        paired: whether the runs are paired by their place, as those that began with the same parameters. Otherwise
            seeds are draws of each model's own, and their numbers may differ.
        confidence: coverage of the intervals.
        resamples: behind the intervals where both have a single seed.

    Raises:
        ValueError: paired models with unequal numbers of seeds.
    """
    if paired and len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} seeds cannot be paired")
    if len(first) == len(second) == 1:
        return differences(first[0], second[0], ks, resamples=resamples, confidence=confidence)
    table, one, other = gain_table(ks), rank_cells(first, ks), rank_cells(second, ks)
    if paired:
        samples = [sample(table[a] - table[b] for a, b in zip(one, other, strict=True))]
        mean = samples[0].mean
    else:
        samples = [sample(table[row] for row in cells) for cells in (one, other)]
        mean = samples[0].mean - samples[1].mean
    uncertain = noise(*samples)
    wide = half_width(uncertain, 1 - confidence)
    columns = [values.tolist() for values in (mean, mean - wide, mean + wide, p_value(mean, uncertain))]
    return {name: Difference(*values) for name, *values in zip(metric_names(ks), *columns, strict=True)}
