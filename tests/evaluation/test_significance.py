"""Bootstrap intervals and paired differences."""

from __future__ import annotations

import numpy as np
import pytest

from mmrec_jax.evaluation.metrics import metrics
from mmrec_jax.evaluation.significance import differences, intervals

RANKS = np.random.default_rng(0).integers(1, 100, 400)


def test_intervals_agree_with_resampling_user_by_user():
    hits = RANKS <= 10
    rng = np.random.default_rng(1)
    plain = hits[rng.integers(0, len(hits), (4000, len(hits)))].mean(axis=1)
    span = intervals(RANKS, (10,), resamples=4000)["HR@10"]
    # One user in 400 is 0.0025; a percentile of 4000 resamples wanders by about one or two such steps.
    np.testing.assert_allclose([span.low, span.high], np.quantile(plain, [0.025, 0.975]), atol=0.006)


def test_intervals_hold_the_value_and_depend_only_on_the_seed():
    values = metrics(RANKS, (10, 50))
    found = intervals(RANKS, (10, 50), seed=3)
    assert found == intervals(RANKS, (10, 50), seed=3)
    assert found != intervals(RANKS, (10, 50), seed=4)
    assert all(found[name].low < value < found[name].high for name, value in values.items())


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(5)
    spans = [intervals(rng.integers(1, 21, 300), (10,), resamples=300, seed=s)["HR@10"] for s in range(200)]
    covered = np.mean([span.low <= 0.5 <= span.high for span in spans])
    # 200 trials at 95% have a standard deviation of 1.5 points; four of them.
    assert 0.89 <= covered <= 1


def test_pairing_narrows_the_interval_of_a_difference():
    slightly_better = np.maximum(RANKS - 2, 1)
    found = differences(slightly_better, RANKS, (10,))["HR@10"]
    alone = intervals(RANKS, (10,))["HR@10"]
    assert found.mean == pytest.approx(metrics(slightly_better, (10,))["HR@10"] - metrics(RANKS, (10,))["HR@10"])
    assert found.low <= found.mean <= found.high
    assert found.high - found.low < (alone.high - alone.low) / 1.5


def test_a_model_does_not_differ_from_itself_and_a_clearly_better_one_does():
    assert differences(RANKS, RANKS, (10,))["NDCG@10"].p_value == 1
    assert differences(np.maximum(RANKS - 30, 1), RANKS, (10,))["NDCG@10"].p_value < 0.01


def test_exchanging_the_models_turns_the_sign_and_keeps_the_p_value():
    other = np.random.default_rng(2).permutation(RANKS)
    there, back = differences(RANKS, other, (10,))["HR@10"], differences(other, RANKS, (10,))["HR@10"]
    assert there.mean == -back.mean
    # The two draw other resamples: p of 1000 resamples has a standard deviation below 0.035.
    assert there.p_value == pytest.approx(back.p_value, abs=0.15)
