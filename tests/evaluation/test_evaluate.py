"""Evaluation of a scorer from examples to report."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from rich.console import Console

from mmrec_jax.data.prepared import Examples
from mmrec_jax.data.ragged import Ragged
from mmrec_jax.errors import ConfigError, EmptySplitError, EvaluationError
from mmrec_jax.evaluation import EvaluationConfig, PopularityScorer, compare, evaluate
from mmrec_jax.evaluation.ranking import MISS
from mmrec_jax.evaluation.report import (
    difference_table,
    markdown,
    slice_markdown,
    slice_table,
    table,
)

POPULARITY = np.array([0, 9, 7, 5, 5, 1, 0])
CONFIG = EvaluationConfig(ks=(1, 3), bootstrap=200, length_edges=(2,))


def examples_of(histories: list[list[int]], targets: list[int]) -> Examples:
    ragged = Ragged.of_lengths(
        np.array([item for history in histories for item in history], np.int64),
        np.array([len(history) for history in histories]),
    )
    repeat = np.array([target in history for target, history in zip(targets, histories, strict=True)])
    return Examples(np.arange(len(targets), dtype=np.int32), ragged, np.array(targets, np.int32), repeat)


EXAMPLES = examples_of([[1], [2, 2, 3], [1, 3], [6]], [2, 1, 3, 4])


@dataclass
class LastItemScorer:
    """Scores by the table's row of the last item, so that inputs can be told apart."""

    table: np.ndarray

    def user_vectors(self, inputs):
        assert inputs.dtype == np.int32
        return jnp.asarray(self.table[inputs[:, -1]])

    def item_vectors(self):
        return jnp.eye(len(self.table))


def test_popularity_ranks_by_training_interactions_without_the_history():
    result = evaluate(PopularityScorer(POPULARITY), EXAMPLES, POPULARITY, length=2, config=CONFIG)
    # User 3: items 1 and 2 are more popular than 4, and item 3 ties with it.
    np.testing.assert_array_equal(result.ranks, [1, 1, MISS, 4])
    assert result.metrics["HR@1"] == 0.5
    assert result.repeats == 1


@pytest.mark.parametrize(
    ("settings", "rank"),
    [({}, MISS), ({"repeats_are_misses": False}, 3), ({"mask_history": False}, 4)],
)
def test_a_repeat_is_a_miss_unless_the_switches_say_otherwise(settings, rank):
    result = evaluate(PopularityScorer(POPULARITY), EXAMPLES, POPULARITY, length=2, config=replace(CONFIG, **settings))
    assert result.ranks[2] == rank


def test_the_model_reads_the_last_items_and_the_mask_covers_all():
    table = np.zeros((7, 7), np.float32)
    table[3] = [9, 4, 6, 3, 2, 1, 0]
    result = evaluate(
        LastItemScorer(table),
        examples_of([[2, 6, 3], [2, 6, 3]], [1, 4]),
        POPULARITY,
        length=1,
        config=CONFIG,
    )
    np.testing.assert_array_equal(result.ranks, [1, 2])
    assert result.metrics["Coverage@1"] == 1 / 6
    assert result.metrics["Popularity@1"] == 9


def test_slices_and_intervals_are_reported_with_counts():
    present = {"text": np.array([0, 1, 1, 1, 1, 1, 1], bool), "image": np.array([0, 1, 0, 0, 0, 0, 0], bool)}
    result = evaluate(PopularityScorer(POPULARITY), EXAMPLES, POPULARITY, length=2, config=CONFIG, present=present)
    assert result.slices["history"]["2+"]["count"] == 2
    assert result.slices["modalities"]["image+text"] == {"count": 1} | dict.fromkeys(
        [f"{m}@{k}" for m in ("HR", "NDCG", "MRR", "Recall") for k in (1, 3)], 1.0
    )
    assert sum(group["count"] for group in result.slices["popularity"].values()) == 4
    assert result.intervals["HR@1"].low <= result.metrics["HR@1"] <= result.intervals["HR@1"].high


def test_slices_intervals_and_lists_can_be_left_out():
    config = replace(CONFIG, slices=False, bootstrap=0, lists=False)
    result = evaluate(PopularityScorer(POPULARITY), EXAMPLES, POPULARITY, length=2, config=config)
    assert result.slices == {}
    assert result.intervals == {}
    assert "Coverage@1" not in result.metrics


def test_the_summary_is_json_and_ranks_are_written_by_id(tmp_path):
    result = evaluate(PopularityScorer(POPULARITY), EXAMPLES, POPULARITY, length=2, config=CONFIG)
    summary = json.loads(result.to_json())
    assert summary["metrics"] == result.metrics
    assert summary["examples"] == 4
    path = tmp_path / "ranks_test.parquet"
    result.write_ranks(path, np.array(list("uvwx")), np.array(["", *"abcdef"]))
    assert pl.read_parquet(path).to_dict(as_series=False) == {
        "user": ["u", "v", "w", "x"],
        "item": ["b", "a", "c", "d"],
        "rank": [1, 1, None, 4],
    }


def rendered(table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def test_reports_show_models_side_by_side_in_percent():
    popular = evaluate(PopularityScorer(POPULARITY), EXAMPLES, POPULARITY, length=2, config=CONFIG)
    model = evaluate(LastItemScorer(np.eye(7, dtype=np.float32)), EXAMPLES, POPULARITY, length=2, config=CONFIG)
    results = {"popularity": popular, "model": model}
    assert "50.00" in rendered(table(results))
    lines = markdown(results, metrics=("HR", "Popularity")).splitlines()
    assert lines[0] == "| metric | popularity | model |"
    assert lines[2].startswith("| HR@1 | 50.00 (")
    assert [line.split(" ")[1] for line in lines[2:]] == ["HR@1", "Popularity@1", "HR@3", "Popularity@3"]
    assert "| popularity | head | 1 | 100.00 | " in slice_markdown(results, "HR@3")
    assert "NDCG@1 by slice" in rendered(slice_table(results))
    assert "+0.00 to +100.00" in rendered(difference_table(compare(popular, model)))


def test_a_result_without_a_slicing_leaves_its_cells_empty():
    plain = evaluate(PopularityScorer(POPULARITY), EXAMPLES, POPULARITY, length=2, config=CONFIG)
    sliced = replace(plain, slices=plain.slices | {"modalities": {"text": {"count": 4, "HR@1": 0.5}}})
    for results in ({"plain": plain, "sliced": sliced}, {"sliced": sliced, "plain": plain}):
        assert slice_markdown(results, "HR@1").splitlines()[-1].count("50.00") == 1


def test_results_of_different_examples_are_not_compared():
    scorer = PopularityScorer(POPULARITY)
    first = evaluate(scorer, EXAMPLES, POPULARITY, length=2, config=CONFIG)
    other = evaluate(scorer, examples_of([[1]], [2]), POPULARITY, length=2, config=CONFIG)
    with pytest.raises(EvaluationError, match="different examples"):
        compare(first, other)
    with pytest.raises(EvaluationError, match="different settings"):
        compare(first, replace(first, config=replace(CONFIG, mask_history=False)))


def test_results_without_intervals_are_compared_by_resamples_all_the_same():
    config, many = replace(CONFIG, bootstrap=0), examples_of([[1]] * 50, [2] * 50)
    first = evaluate(PopularityScorer(POPULARITY), many, POPULARITY, length=2, config=config)
    assert compare(first, replace(first, ranks=first.ranks + 5))["HR@3"].p_value == 2 / 1001


def test_errors_say_what_does_not_fit():
    scorer = PopularityScorer(POPULARITY)
    with pytest.raises(EmptySplitError, match="no held-out item"):
        evaluate(scorer, examples_of([], []), POPULARITY, length=2, config=CONFIG)
    with pytest.raises(ConfigError, match="k = 20 is larger than the catalogue of 6 items"):
        evaluate(scorer, EXAMPLES, POPULARITY, length=2, config=replace(CONFIG, ks=(1, 20)))
    with pytest.raises(EvaluationError, match="the model has 6 items but the catalogue 7"):
        evaluate(scorer, EXAMPLES, np.append(POPULARITY, 1), length=2, config=CONFIG)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ks", ()),
        ("ks", (0,)),
        ("length_edges", (5, 5)),
        ("bootstrap", -1),
        ("confidence", 1.0),
        ("user_block", 0),
    ],
)
def test_impossible_settings_are_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=f"evaluation.{key}"):
        EvaluationConfig(**{key: value})
