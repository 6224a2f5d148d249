"""Which runs count in a table where some failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mmrec_jax.comparison.outcomes import _kept
from mmrec_jax.comparison.plan import Trial, Variant


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
