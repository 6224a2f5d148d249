"""The arithmetic behind the quality benchmarks' tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmrec_jax.evaluation.ranking import MISS
from tests.tiny_run import ROOT


@pytest.fixture
def quality_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import quality_runs

    return quality_runs


def test_gains_average_to_the_metrics(quality_runs):
    first, second = np.array([1, 3, 11, MISS]), np.array([10, 2, 12, 5])
    found = quality_runs.gains([first, second])
    assert found["HR@10"].mean(axis=1).tolist() == [0.5, 0.75]
    ideal = [1 + 1 / math.log2(4), 1 / math.log2(11) + 1 / math.log2(3) + 1 / math.log2(6)]
    np.testing.assert_allclose(found["NDCG@10"].mean(axis=1), np.array(ideal) / 4)


def test_an_interval_covers_the_noise_of_the_users_and_of_the_seeds(quality_runs):
    rng = np.random.default_rng(0)
    users, seeds = 400, 5
    of_seed = rng.normal(0, 0.02, (seeds, 1))  # how well a training went
    values = np.clip(rng.random((seeds, users)) + of_seed, 0, 1)
    draws = quality_runs.resampled({"model": dict.fromkeys(quality_runs.METRICS, values)})["model"]["HR@10"]
    seed_noise, user_noise = values.mean(axis=1).std(ddof=0) / seeds**0.5, values.mean(axis=0).std() / users**0.5
    assert abs(draws.mean() - values.mean()) < 0.002
    # Both sources add up as variances; the product of the two resamplings adds a little.
    np.testing.assert_allclose(draws.std(), math.hypot(seed_noise, user_noise), rtol=0.35)
    assert draws.std() > max(seed_noise, user_noise)


def test_models_are_compared_on_the_same_users(quality_runs):
    hits = (np.arange(100) < 30).astype(float)[None]
    models = {name: dict.fromkeys(quality_runs.METRICS, hits) for name in ("one", "same")}
    draws = quality_runs.resampled(models)
    np.testing.assert_array_equal(draws["one"]["HR@10"], draws["same"]["HR@10"])


def test_settings_are_numbers_flags_lists_and_texts(quality_runs):
    found = quality_runs.settings(["a.b=2", "c=0.5", "d=false", "e=[1,2]", "f=identity", "g=x=y"])
    assert found == {"a.b": 2, "c": 0.5, "d": False, "e": [1, 2], "f": "identity", "g": "x=y"}


def test_a_config_of_a_benchmark_takes_settings_and_leaves_the_extras_out(quality_runs):
    config = quality_runs.load_config("crossan", {"training.seed": 3, "modalities.poster.layers": [4, 8]})
    assert (config.training.seed, config.baselines, config.show_users) == (3, (), 0)
    assert tuple(config.modalities.poster.layers) == (4, 8)
