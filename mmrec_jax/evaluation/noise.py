"""How sure a mean over users and seeds is.

What a user adds to a metric in the run of a seed is taken as a sum of two-way random effects,

    mean + user + training + rest,

of the user in all runs, of the run for all users, and of both together. The mean over N users and n seeds then has the
variance (Brennan, Generalizability Theory, 2001, design p x i; Owen, The pigeonhole bootstrap, 2007)

    V(user) / N  +  (V(training) + V(rest) / N) / n.

The second term, the seeds' part, is the variance of the runs' means over n, without bias and with n - 1 degrees of
freedom; the first, the users' part, is that of the users' means, less what the rest adds to it. Each part has a t
quantile of its own, and their half-widths are added as squares (Howe, Approximate Confidence Limits on the Mean of
X + Y, JASA 1974). Seeds' parts of two models that are not paired are one, with Welch's degrees of freedom.

PROPOSAL (not from those papers): the rest counts as seeds' part, which is then chi-square, and not as the users', where
it would be known better; an interval is at least as wide as one over the users alone, since two seeds may agree by
chance; and each part has its own quantile. By one of both with Satterthwaite's degrees of freedom up to 13% of equal
models differ at 5% with two paired seeds and 8% with three, 8% and 4% at 1%; by these no more than 5% and 1% do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from scipy.special import stdtrit

_SMALLEST_P = 1e-12
_HALVINGS = 60  # of an interval of logarithms as wide as 28

OfMetric = Float64[np.ndarray, " metric"]


@dataclass(frozen=True)
class Sample:
    """The gains of one model, or the paired differences of two, in runs of several seeds.

    Attributes:
        of_users: mean over runs.
        mean: of all.
        seeds: how many runs.
        between: variance of the runs' means, each over all users; NaN with one run.
        rest: variance of what neither the user nor the run explains, over the number of users; NaN with one run.
    """

    of_users: Float64[np.ndarray, "user metric"]
    mean: OfMetric
    seeds: int
    between: OfMetric
    rest: OfMetric


@dataclass(frozen=True)
class Noise:
    """Variance of a mean over users and seeds, by its source.

    Attributes:
        users, training: the users' part and the seeds' part.
        alone: variance of the users' means, of these very runs.
        of_users, of_training: degrees of freedom.
    """

    users: OfMetric
    training: OfMetric
    alone: OfMetric
    of_users: int
    of_training: OfMetric


def sample(runs: Iterable[Float64[np.ndarray, "user metric"]]) -> Sample:
    """From the gains of each run, or their differences; the users are the same."""
    first, *others = runs
    of_users, squares, means = first.copy(), (first**2).sum(axis=0), [first.mean(axis=0)]
    for run in others:
        of_users += run
        squares += (run**2).sum(axis=0)
        means.append(run.mean(axis=0))
    (users, _), seeds, of_runs = first.shape, len(means), np.stack(means)
    of_users /= seeds
    mean = of_runs.mean(axis=0)
    if seeds == 1:
        return Sample(of_users, mean, 1, np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    left = squares - seeds * (of_users**2).sum(axis=0) - users * (of_runs**2).sum(axis=0) + seeds * users * mean**2
    rest = np.maximum(left, 0) / ((seeds - 1) * max(users - 1, 1) * users)
    return Sample(of_users, mean, seeds, of_runs.var(axis=0, ddof=1), rest)


def noise(*samples: Sample) -> Noise:
    """Of the mean of a sample, or of the difference of two whose runs are not paired; not all of one run.

    A sample of one run is taken to vary as much with the seed as the other.
    """
    known = next(each for each in samples if each.seeds > 1)
    full = [each if each.seeds > 1 else replace(each, between=known.between, rest=known.rest) for each in samples]
    of_users = full[0].of_users if len(full) == 1 else full[0].of_users - full[1].of_users
    users = len(of_users)
    freedom = max(users - 1, 1)
    spread = ((of_users - of_users.mean(axis=0)) ** 2).sum(axis=0) / (freedom * users)
    parts = np.stack([each.between / each.seeds for each in full])
    if all(each.seeds > 1 for each in samples):
        own = np.array([each.seeds - 1.0 for each in samples])[:, None]
        below = (parts**2 / own).sum(axis=0)
        training_freedom = np.divide(parts.sum(axis=0) ** 2, below, out=np.ones_like(below), where=below > 0)
    else:
        training_freedom = np.full(parts.shape[1], known.seeds - 1.0)
    rest = sum(each.rest / each.seeds for each in full)
    return Noise(np.maximum(spread - rest, 0), parts.sum(axis=0), spread, freedom, training_freedom)


def half_width(noise: Noise, outside: float | OfMetric) -> OfMetric:
    """Of the interval that leaves a share of `outside` out, half of it on each side."""
    of_users, of_training = (stdtrit(freedom, outside / 2) for freedom in (noise.of_users, noise.of_training))
    both = noise.users * of_users**2 + noise.training * of_training**2
    return np.sqrt(np.maximum(both, noise.alone * of_users**2))


def p_value(mean: OfMetric, noise: Noise) -> OfMetric:
    """Two-sided: the share outside of the interval that ends at 0; 1 where the mean is 0, and never below 1e-12."""
    low, high = np.full_like(mean, np.log(_SMALLEST_P)), np.zeros_like(mean)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        wide = half_width(noise, np.exp(middle)) > np.abs(mean)
        low, high = np.where(wide, middle, low), np.where(wide, high, middle)
    return np.where(mean == 0, 1.0, np.exp(high))
