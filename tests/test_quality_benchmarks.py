"""The arithmetic behind the quality benchmarks' tables."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmrec_jax.evaluation.ranking import MISS
from mmrec_jax.evaluation.seeds import seed_differences, seed_means
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


def test_means_and_differences_are_those_of_comparisons(quality_runs):
    found, other = [np.array([1, 3, 11, MISS] * 5), np.array([10, 2, 12, 5] * 5)], [np.array([1, 3, 2, 11] * 5)] * 2
    result, means = quality_runs.summary(found), seed_means(np.stack(found), (10,))
    change, differences = quality_runs.change(found, other), seed_differences(np.stack(found), np.stack(other), (10,))
    for metric in quality_runs.METRICS:
        mean, difference = means[metric], differences[metric]
        assert result[metric] == {"mean": mean.mean, "interval": (mean.low, mean.high), "seeds": [*mean.seeds]}
        assert change[metric] == {"mean": difference.mean, "interval": (difference.low, difference.high)}
    assert result["HR@10"]["seeds"] == [0.5, 0.75]


def test_settings_are_numbers_flags_lists_and_texts(quality_runs):
    found = quality_runs.settings(["a.b=2", "c=0.5", "d=false", "e=[1,2]", "f=identity", "g=x=y"])
    assert found == {"a.b": 2, "c": 0.5, "d": False, "e": [1, 2], "f": "identity", "g": "x=y"}


def test_a_config_of_a_benchmark_takes_settings_and_leaves_the_extras_out(quality_runs):
    config = quality_runs.load_config("crossan", {"training.seed": 3, "modalities.poster.layers": [4, 8]})
    assert (config.training.seed, config.baselines, config.show_users) == (3, (), 0)
    assert tuple(config.modalities.poster.layers) == (4, 8)
