"""Means over seeds, their intervals and paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmrec_jax.evaluation.metrics import metric_names, metrics
from mmrec_jax.evaluation.ranking import MISS
from mmrec_jax.evaluation.seeds import resample, seed_differences, seed_means
from mmrec_jax.evaluation.significance import holm

KS = (5, 10)
SEEDS, USERS = 4, 300


def column(metric: str) -> int:
    return metric_names(KS).index(metric)


def ranks_of(quality: float, seed: int, seeds: int = SEEDS) -> np.ndarray:
    """Ranks 1 to 30 of as many users, lower the better a model is; trainings differ in how good they are."""
    rng = np.random.default_rng(seed)
    of_seed = rng.normal(quality, 3, (seeds, 1))
    return np.clip(rng.integers(1, 31, (seeds, USERS)) - of_seed, 1, 30).astype(np.int32)


def ndcg(ranks: np.ndarray) -> np.ndarray:
    """What each user adds to NDCG@10, written down anew."""
    return np.where(ranks <= 10, 1 / np.log2(1 + ranks.astype(float)), 0.0)


def by_hand(first: np.ndarray, second: np.ndarray, resamples: int, same_seeds: bool) -> tuple[np.ndarray, np.ndarray]:
    """Resampled means of NDCG@10 of both models, user by user and seed by seed."""
    rng = np.random.default_rng(7)
    one, other = ndcg(first), ndcg(second)
    found = np.empty((2, resamples))
    for draw in range(resamples):
        users = rng.integers(0, USERS, USERS)
        seeds = rng.integers(0, len(one), len(one))
        others = seeds if same_seeds else rng.integers(0, len(other), len(other))
        found[:, draw] = one[seeds][:, users].mean(), other[others][:, users].mean()
    return found[0], found[1]


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_those_of_resampling_users_and_seeds_one_by_one(grouped):
    models = {"a": ranks_of(2, 0), "b": ranks_of(0, 1)}
    models["b"][:, :150] = models["a"][:, :150]  # so that pairing by users and seeds shows
    groups = {"a": "both", "b": "both"} if grouped else None
    draws = resample(models, KS, resamples=4000, groups=groups)
    a, b = by_hand(models["a"], models["b"], 4000, grouped)
    at = column("NDCG@10")
    found = seed_differences(models["a"], models["b"], (draws["a"], draws["b"]), KS)["NDCG@10"]
    mean = seed_means(models["a"], draws["a"], KS)["NDCG@10"]
    # Deviations of 4000 draws are known to about 1/sqrt(8000) = 1.1%, percentiles to some 3%; four times that.
    np.testing.assert_allclose([draws["a"][:, at].std(), draws["b"][:, at].std()], [a.std(), b.std()], rtol=0.05)
    np.testing.assert_allclose((draws["a"] - draws["b"])[:, at].std(), (a - b).std(), rtol=0.05)
    wide = np.ptp(np.quantile(a - b, [0.025, 0.975]))
    np.testing.assert_allclose([found.low, found.high], np.quantile(a - b, [0.025, 0.975]), atol=0.12 * wide)
    np.testing.assert_allclose([mean.low, mean.high], np.quantile(a, [0.025, 0.975]), atol=0.12 * np.ptp(a) / 2)
    np.testing.assert_allclose(found.mean, ndcg(models["a"]).mean() - ndcg(models["b"]).mean(), rtol=1e-12)


def test_means_are_those_of_the_seeds():
    ranks = np.array([[1, 3, 11, MISS], [10, 2, 12, 5]], np.int32)
    found = seed_means(ranks, resample({"model": ranks}, KS)["model"], KS)
    assert found["HR@10"].seeds == (0.5, 0.75)
    ideal = [1 + 1 / math.log2(4), 1 / math.log2(11) + 1 / math.log2(3) + 1 / math.log2(6)]
    np.testing.assert_allclose(found["NDCG@10"].seeds, np.array(ideal) / 4)
    for name, mean in found.items():
        np.testing.assert_allclose(mean.mean, np.mean([metrics(row, KS)[name] for row in ranks]))


def test_an_interval_covers_the_noise_of_the_users_and_of_the_seeds():
    ranks = ranks_of(0, 3, seeds=5)
    draws = resample({"model": ranks}, KS, resamples=5000)["model"][:, column("NDCG@10")]
    gains = ndcg(ranks)
    seed_noise = gains.mean(axis=1).std() / len(gains) ** 0.5
    user_noise = gains.mean(axis=0).std() / USERS**0.5
    # Both sources add up as variances; the product of the two resamplings adds a little.
    np.testing.assert_allclose(draws.std(), math.hypot(seed_noise, user_noise), rtol=0.35)
    assert draws.std() > max(seed_noise, user_noise)


def test_equal_models_of_one_seed_do_not_differ_at_all():
    ranks = ranks_of(0, 0, seeds=1)
    draws = resample({"one": ranks, "same": ranks}, KS)
    for value in seed_differences(ranks, ranks, (draws["one"], draws["same"]), KS).values():
        assert (value.mean, value.low, value.high, value.p_value) == (0, 0, 0, 1)


def test_many_patterns_are_drawn_block_by_block_with_the_same_result(monkeypatch):
    models = {"a": ranks_of(2, 0), "b": ranks_of(0, 1)}
    whole = resample(models, KS, resamples=50)
    monkeypatch.setattr("mmrec_jax.evaluation.seeds._BLOCK", 1000)  # three resamples a block
    parts = resample(models, KS, resamples=50)
    # The sums are the same numbers, added by matrix products of other sizes.
    np.testing.assert_allclose(parts["b"], whole["b"], rtol=1e-12)


def test_models_of_a_group_need_the_same_number_of_seeds():
    with pytest.raises(ValueError, match="b has 2 seeds"):
        resample({"a": ranks_of(0, 0, 3), "b": ranks_of(0, 0, 2)}, KS, groups={"a": "g", "b": "g"})


def test_adjusted_p_values_are_holms():
    # Smallest times 4, next times 3, and so on; never below the one before, at most 1.
    np.testing.assert_allclose(holm([0.02, 0.01, 0.5, 0.015]), [0.045, 0.04, 0.5, 0.045])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
