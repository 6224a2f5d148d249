"""Metrics, slices and list statistics from ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrec_jax.evaluation.lists import ListStatistics
from mmrec_jax.evaluation.metrics import GAINS, grouped_metrics, metrics
from mmrec_jax.evaluation.ranking import MISS
from mmrec_jax.evaluation.slices import by_history_length, by_modalities, by_popularity

RANKS = st.lists(st.integers(1, 60) | st.just(int(MISS)), min_size=1, max_size=40).map(np.array)


def test_metrics_are_those_of_the_definitions():
    found = metrics(np.array([1, 3, 11, MISS]), (2, 10))
    assert found["HR@2"] == found["Recall@2"] == 1 / 4
    assert found["HR@10"] == 2 / 4
    assert found["MRR@10"] == pytest.approx((1 + 1 / 3) / 4)
    assert found["NDCG@10"] == pytest.approx((1 + 1 / 2) / 4)
    assert found["NDCG@2"] == pytest.approx(1 / 4)


@given(RANKS)
def test_metrics_grow_with_k_and_stay_within_the_hit_ratio(ranks):
    ks = (1, 5, 10, 50, 1000)
    found = metrics(ranks, ks)
    for name in GAINS:
        values = [found[f"{name}@{k}"] for k in ks]
        assert values == sorted(values)
        assert all(0 <= value <= found[f"HR@{k}"] for value, k in zip(values, ks, strict=True))


@given(RANKS)
def test_a_better_rank_never_lowers_a_metric(ranks):
    worse, better = metrics(ranks, (5, 20)), metrics(np.maximum(ranks - 1, 1), (5, 20))
    assert all(better[name] >= worse[name] for name in worse)


@given(RANKS, st.integers(0, 10**6))
def test_groups_average_to_the_whole(ranks, seed):
    groups = np.random.default_rng(seed).integers(0, 3, len(ranks))
    found = grouped_metrics(ranks, groups, 3, (10,))
    assert [bool(group) for group in found] == [bool((groups == g).any()) for g in range(3)]
    total = sum(group["NDCG@10"] * (groups == g).sum() for g, group in enumerate(found) if group)
    # Two orders of summing at most 40 numbers below 1 in float64.
    assert total / len(ranks) == pytest.approx(metrics(ranks, (10,))["NDCG@10"], abs=1e-12)


def test_popularity_slices_split_the_interactions_in_thirds():
    popularity = np.array([0, 30, 10, 10, 10, 5, 5, 5, 5, 5, 5, 0])
    slicing = by_popularity(popularity, np.arange(1, 12))
    names = [slicing.names[group] for group in slicing.groups]
    assert names == ["head"] + 3 * ["mid"] + 6 * ["tail"] + ["new"]


def test_equally_popular_items_share_a_slice():
    slicing = by_popularity(np.array([0, 4, 4, 4, 4]), np.array([1, 2, 3, 4]))
    assert {slicing.names[group] for group in slicing.groups} == {"head"}


def test_history_buckets_begin_at_their_edges():
    slicing = by_history_length(np.array([0, 1, 4, 5, 9, 10, 99]), (1, 5, 10))
    assert slicing.names == ("0", "1-4", "5-9", "10+")
    np.testing.assert_array_equal(slicing.groups, [0, 1, 1, 2, 2, 3, 3])


def test_modality_slices_name_the_patterns_that_occur():
    present = {"text": np.array([0, 1, 1, 0], bool), "image": np.array([0, 0, 1, 0], bool)}
    slicing = by_modalities(present, np.array([1, 2, 3, 1]))
    assert [slicing.names[group] for group in slicing.groups] == ["text", "image+text", "none", "text"]


def test_a_slice_without_examples_has_a_count_and_no_metrics():
    slicing = by_history_length(np.array([2, 3]), (5,))
    found = slicing.metrics(np.array([1, 20]), (10,))
    assert found["5+"] == {"count": 0}
    assert found["0-4"]["count"] == 2
    assert found["0-4"]["HR@10"] == 0.5


def test_coverage_and_popularity_of_lists_do_not_depend_on_how_they_arrive():
    popularity = np.array([0, 8, 4, 2, 0])
    lists = np.array([[1, 2], [1, 3], [2, 0]])
    whole, parts = ListStatistics(popularity, 2), ListStatistics(popularity, 2)
    whole.update(lists)
    for row in lists:
        parts.update(row[None])
    found = whole.metrics((1, 2))
    assert found == parts.metrics((1, 2))
    assert found["Coverage@1"] == 2 / 4
    assert found["Coverage@2"] == 3 / 4
    assert found["Popularity@1"] == pytest.approx((8 + 8 + 4) / 3)
    assert found["Popularity@2"] == pytest.approx((8 + 8 + 4 + 4 + 2) / 5)
