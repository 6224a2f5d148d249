"""Means over seeds, their intervals and differences."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy import stats

from mmrec_jax.evaluation.metrics import metrics
from mmrec_jax.evaluation.ranking import MISS
from mmrec_jax.evaluation.seeds import seed_differences, seed_means
from mmrec_jax.evaluation.significance import differences, holm, intervals

KS = (5, 10)
SEEDS, USERS = 4, 300


def ranks_of(quality: float, seed: int, seeds: int = SEEDS, users: int = USERS) -> np.ndarray:
    """Ranks 1 to 30 of as many users, lower the better a model is; trainings differ in how good they are."""
    rng = np.random.default_rng(seed)
    of_seed = rng.normal(quality, 3, (seeds, 1))
    return np.clip(rng.integers(1, 31, (seeds, users)) - of_seed, 1, 30).astype(np.int32)


def ndcg(ranks: np.ndarray) -> np.ndarray:
    """What each user adds to NDCG@10, written down anew."""
    return np.where(ranks <= 10, 1 / np.log2(1 + ranks.astype(float)), 0.0)


def parts(gains: np.ndarray) -> tuple[float, float, float]:
    """Users' part with the rest's, the rest's and the seeds' part of the variance of a mean, by sums of squares."""
    seeds, users = gains.shape
    by_user, by_seed, mean = gains.mean(axis=0), gains.mean(axis=1), gains.mean()
    rest = ((gains - by_user - by_seed[:, None] + mean) ** 2).sum() / ((seeds - 1) * (users - 1))
    return by_user.var(ddof=1) / users, rest / (seeds * users), by_seed.var(ddof=1) / seeds


def limits(users: float, training: float, freedom: float) -> float:
    """Howe's half-width at 95%."""
    return math.hypot(stats.t(USERS - 1).ppf(0.975) * max(users, 0) ** 0.5, stats.t(freedom).ppf(0.975) * training**0.5)


def test_a_mean_is_as_uncertain_as_its_users_and_its_trainings_make_it():
    ranks = ranks_of(2, 0)
    ranks[:, :150] = ranks[0, :150]  # so that users differ
    users, rest, training = parts(ndcg(ranks))
    assert users > rest
    found, mean = seed_means(ranks, KS)["NDCG@10"], ndcg(ranks).mean()
    wide = limits(users - rest, training, SEEDS - 1)
    np.testing.assert_allclose([found.mean, found.low, found.high], [mean, mean - wide, mean + wide], rtol=1e-9)


def test_differences_of_paired_seeds_are_those_of_the_runs():
    first, second = ranks_of(2, 0), ranks_of(0, 1)
    second[:, :150] = first[0, :150]
    gains = ndcg(first) - ndcg(second)
    users, rest, training = parts(gains)
    wide = limits(users - rest, training, SEEDS - 1)
    found = seed_differences(first, second, KS, paired=True)["NDCG@10"]
    expected = [gains.mean(), gains.mean() - wide, gains.mean() + wide]
    np.testing.assert_allclose([found.mean, found.low, found.high], expected, rtol=1e-9)


def test_seeds_that_are_not_paired_may_differ_in_number_and_order():
    first, second = ranks_of(2, 0), ranks_of(0, 1, seeds=3)
    second[:, :150] = 1
    (_, of_rest, one), (_, rest, other) = parts(ndcg(first)), parts(ndcg(second))
    by_user = ndcg(first).mean(axis=0) - ndcg(second).mean(axis=0)
    freedom = (one + other) ** 2 / (one**2 / (SEEDS - 1) + other**2 / 2)  # Welch's
    wide = limits(by_user.var(ddof=1) / USERS - of_rest - rest, one + other, freedom)
    found = seed_differences(first, second, KS)["NDCG@10"]
    expected = [by_user.mean(), by_user.mean() - wide, by_user.mean() + wide]
    np.testing.assert_allclose([found.mean, found.low, found.high], expected, rtol=1e-9)
    turned = seed_differences(first[::-1], second[::-1], KS)["NDCG@10"]
    np.testing.assert_allclose([turned.low, turned.p_value], [found.low, found.p_value], rtol=1e-9)
    with pytest.raises(ValueError, match="4 and 3 seeds cannot be paired"):
        seed_differences(first, second, KS, paired=True)


def test_a_few_seeds_that_happen_to_agree_in_sign_prove_nothing():
    # Each seed of the first model is better by some 1 to 3 points: by chance in one of two pairs of seeds.
    base = np.random.default_rng(0).integers(1, 21, 20_000)
    first = np.stack([np.where(np.arange(20_000) < 200 * points, 1, base) for points in (1, 3)])
    found = seed_differences(first, np.stack([base, base]), KS, paired=True)["HR@10"]
    assert found.low < 0 < found.mean
    assert found.p_value > 0.05


def test_means_are_those_of_the_seeds():
    ranks = np.array([[1, 3, 11, MISS], [10, 2, 12, 5]], np.int32)
    found = seed_means(ranks, KS)
    assert found["HR@10"].seeds == (0.5, 0.75)
    ideal = [1 + 1 / math.log2(4), 1 / math.log2(11) + 1 / math.log2(3) + 1 / math.log2(6)]
    np.testing.assert_allclose(found["NDCG@10"].seeds, np.array(ideal) / 4)
    for name, mean in found.items():
        np.testing.assert_allclose(mean.mean, np.mean([metrics(row, KS)[name] for row in ranks]))
        assert 0 <= mean.low < mean.mean < mean.high <= 1
    assert (found["HR@10"].low, found["HR@10"].high) == (0, 1)  # limits of two seeds lie far beyond


def test_with_one_seed_only_the_users_are_resampled():
    first, second = ranks_of(2, 0, seeds=1), ranks_of(0, 1, seeds=1)
    for name, span in intervals(first[0], KS, resamples=200).items():
        mean = seed_means(first, KS, resamples=200)[name]
        assert (mean.low, mean.high) == (span.low, span.high)
    assert seed_differences(first, second, KS, resamples=200) == differences(first[0], second[0], KS, resamples=200)


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_models_do_not_differ_at_all(seeds):
    ranks = ranks_of(0, 0, seeds=seeds)
    for value in seed_differences(ranks, ranks, KS, paired=True).values():
        assert (value.mean, value.low, value.high, value.p_value) == (0, 0, 0, 1)


def test_many_users_and_seeds_take_no_time():
    first, second = (ranks_of(0, seed, 10, 20_000) for seed in (0, 1))
    start = time.process_time()
    seed_differences(first, second, KS)
    assert time.process_time() - start < 2  # 0.2 s on one busy core


def test_adjusted_p_values_are_holms():
    # Smallest times 4, next times 3, and so on; never below the one before, at most 1.
    np.testing.assert_allclose(holm([0.02, 0.01, 0.5, 0.015]), [0.045, 0.04, 0.5, 0.045])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
