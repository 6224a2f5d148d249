"""Models that were trained with several seeds each, on the same examples: means, their intervals, paired differences.

A resample takes the examples with replacement, the same for all models, and the seeds with replacement: so an interval
covers the noise of the users and that of the training. Models of one group share the draw of the seeds too, because
what they are compared by is paired there (a stage that began with the parameters of the stage before it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, Int64

from mmrec_jax.evaluation.metrics import gain_table, metric_names, rank_cells
from mmrec_jax.evaluation.significance import Difference, difference_of, percentiles

Ranks = Int[np.ndarray, "seed example"]
Draws = Float64[np.ndarray, "resample metric"]
"""A model's metrics in each resample, in the order of `metric_names`."""
_BLOCK = 2**22  # counts of a block of resamples: 32 MiB


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


def resample(
    models: Mapping[str, Ranks],
    ks: Sequence[int],
    *,
    resamples: int = 1000,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Draws]:
    """Every model's metrics in resamples of examples and seeds.

    Examples of equal ranks in all runs are drawn together, as one multinomial count: same distribution, less work.

    Args:
        models: model -> ranks of each seed; the examples are the same, in the same order.
        ks: cut-offs.
        resamples: how many.
        seed: of the resampling.
        groups: model -> name of its group; by default each model is one of its own.

    Raises:
        ValueError: the models have not the same number of examples, or those of a group not of seeds.
    """
    groups = groups or {}
    table = gain_table(ks)
    cells = np.concatenate([rank_cells(ranks, ks) for ranks in models.values()])
    patterns, counts = np.unique(cells, axis=1, return_counts=True)
    of_examples, *of_seeds = np.random.default_rng(seed).spawn(1 + len(models))
    means = np.empty((resamples, len(cells), table.shape[1]))
    block = max(_BLOCK // len(counts), 1)
    for start in range(0, resamples, block):
        rows = slice(start, min(start + block, resamples))
        drawn = of_examples.multinomial(cells.shape[1], counts / cells.shape[1], size=rows.stop - start)
        drawn = drawn.astype(np.float64)
        for run, pattern in enumerate(patterns):
            means[rows, run] = drawn @ table[pattern] / cells.shape[1]
    shares: dict[str, Float64[np.ndarray, "resample seed"]] = {}
    result, first = {}, 0
    for (name, ranks), rng in zip(models.items(), of_seeds, strict=True):
        seeds = len(ranks)
        group = groups.get(name, name)
        if group not in shares:
            shares[group] = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
        if shares[group].shape[1] != seeds:
            raise ValueError(f"{name} has {seeds} seeds, another model of its group {group} {shares[group].shape[1]}")
        result[name] = np.einsum("rs,rsm->rm", shares[group], means[:, first : first + seeds])
        first += seeds
    return result


def seed_means(ranks: Ranks, draws: Draws, ks: Sequence[int], confidence: float = 0.95) -> dict[str, SeedMean]:
    """Each metric's mean with its interval, from a model's ranks and its draws by `resample`."""
    observed = _of_seeds(ranks, ks)
    low, high = percentiles(draws, confidence)
    columns = (observed.mean(axis=0).tolist(), low.tolist(), high.tolist(), observed.T.tolist())
    return {
        name: SeedMean(mean, below, above, tuple(seeds))
        for name, mean, below, above, seeds in zip(metric_names(ks), *columns, strict=True)
    }


def seed_differences(
    first: Ranks, second: Ranks, draws: tuple[Draws, Draws], ks: Sequence[int], confidence: float = 0.95
) -> dict[str, Difference]:
    """Paired differences of the means of two models, first minus second.

    Args:
        first, second: ranks of the models.
        draws: of the models, from one call of `resample`.
        ks: cut-offs.
        confidence: coverage of the intervals.
    """
    observed = _of_seeds(first, ks).mean(axis=0) - _of_seeds(second, ks).mean(axis=0)
    return dict(zip(metric_names(ks), difference_of(observed, draws[0] - draws[1], confidence), strict=True))


def _of_seeds(ranks: Ranks, ks: Sequence[int]) -> Float64[np.ndarray, "seed metric"]:
    table = gain_table(ks)
    cells: Int64[np.ndarray, "seed example"] = rank_cells(ranks, ks)
    return np.stack([np.bincount(row, minlength=len(table)) @ table / len(row) for row in cells])
