"""Evaluation at the size of a published benchmark."""

from __future__ import annotations

import numpy as np
import pytest

from mmrec_jax.data import DataConfig, prepare
from mmrec_jax.evaluation import EvaluationConfig, PopularityScorer, evaluate
from mmrec_jax.evaluation.ranking import MISS


@pytest.mark.shared
def test_popularity_on_amazon_scientific_ranks_as_sorted_counts_do(shared, tmp_path):
    prepared = prepare(DataConfig(source=str(shared / "data" / "amazon-scientific"), max_length=13), tmp_path)
    examples, popularity = prepared.examples("test"), prepared.popularity
    result = evaluate(PopularityScorer(popularity), examples, popularity, length=10, config=EvaluationConfig())

    own = popularity[examples.targets]
    ranks = len(popularity) - 1 - np.searchsorted(np.sort(popularity[1:]), own, side="left")
    row = np.repeat(np.arange(len(examples)), examples.histories.lengths)
    pairs = np.unique(np.stack([row, examples.histories.values], axis=1), axis=0)
    others = pairs[pairs[:, 1] != examples.targets[pairs[:, 0]]]
    above = popularity[others[:, 1]] >= own[others[:, 0]]
    ranks -= np.bincount(others[above, 0], minlength=len(ranks))

    np.testing.assert_array_equal(result.ranks, np.where(examples.repeat, MISS, ranks))
    assert result.repeats > 0
    # Top-50 lists hold the 50 most popular items that each user has not had: 50 and a few more in all.
    assert 50 <= result.metrics["Coverage@50"] * prepared.num_items <= 100
