"""Which runs count in a table where some failed, and which are compared with which."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mmrec_jax.comparison.outcomes import _kept, _paired
from mmrec_jax.comparison.plan import Trial, Variant, _compared_with


@pytest.mark.parametrize(
    ("finished", "counted"),
    [
        (("1, seed 0", "1, seed 1", "2, seed 1"), {"1": [1], "2": [1]}),
        (("2, seed 0", "2, seed 1"), {"2": [0, 1]}),  # the first stage finished with no seed
        (("1, seed 0", "1, seed 1"), {"1": [0, 1]}),
        ((), {}),
    ],
)
def test_stages_are_of_the_same_seeds_and_one_without_any_is_left_out(finished, counted):
    config = SimpleNamespace()
    stages = [Variant(name, "shop", number, config) for number, name in enumerate("12", 1)]
    trials = [Trial(stage, seed, config, Path(stage.name)) for seed in (0, 1) for stage in stages]
    kept = _kept(trials, {title: {} for title in finished})
    assert {name: [trial.seed for trial in own] for name, own in kept.items()} == counted


@pytest.mark.parametrize(
    ("starts", "seeds", "paired"),
    [
        (("a/1", "a/1"), ((0, 1), (0, 1)), True),
        (("a/1", "b/1"), ((0, 1), (0, 1)), False),
        (("", ""), ((0, 1), (0, 1)), False),
        (("a/1", "a/1"), ((0, 1), (0, 2)), False),
        (("b/2", ""), ((0, 1), (0, 1)), True),  # a stage and the stage before it
        (("a/1", "copy/1"), ((0, 1), (0, 1)), True),  # a folder of its own with the same training
    ],
)
def test_runs_are_paired_by_seed_where_their_parameters_come_from_the_same_run(starts, seeds, paired):
    config = SimpleNamespace()

    def trial(place, seed, start=""):
        after = trial(start, seed) if start else None
        like = Path(place.replace("copy", "a")) / f"seed_{seed}"
        return Trial(Variant(place, "shop", 2, config), seed, config, Path(place) / f"seed_{seed}", after, like)

    rows = [
        [trial(place, seed, start) for seed in own]
        for place, start, own in zip(("a/2", "b/2"), starts, seeds, strict=True)
    ]
    assert _paired(*rows) is paired


def test_a_stage_that_the_baseline_has_not_is_compared_with_none():
    config = SimpleNamespace()
    rows = [Variant(f"{name} {number}", name, number, config, "x") for name in "ab" for number in (1, 2)][:-1]
    assert [row.reference for row in _compared_with("b", rows)] == ["b 1", "", ""]
