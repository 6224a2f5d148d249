"""What a method's config becomes for each of its stages."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrec_jax.comparison.config import Comparison, Entry
from mmrec_jax.comparison.plan import variants
from mmrec_jax.errors import ConfigError
from mmrec_jax.modes.groups import check_groups
from tests.tiny_run import CONFIG, ROOT

LIVE = """
from mmrec_jax.config import method
from tests.tiny_config import get_config as made

def get_config():
    config = made("x")
    config.methods.picture = method(kind="lora")
    return config
"""
STAGES = (("words",), ("words", "picture"))


def configs(file, *settings, stages=STAGES, **entry):
    made = Comparison("shop", {"a": Entry(str(file), settings, **entry)}, plan="staged", stages=stages)
    return [variant.config for variant in variants(made, Path())]


def groups(file, *patterns, settings=(), **options):
    """Patterns that each stage keeps."""
    pairs = tuple((pattern, 0.1) for pattern in patterns)
    found = configs(file, f"training.groups={pairs}", *settings, **options)
    return [tuple(pattern for pattern, _ in config.training.groups) for config in found]


def test_patterns_of_modalities_that_come_later_are_left_out_before():
    both, one, later = "items/adapters/sanb_(words|picture)", "items/project_words", "items/project_p"
    assert groups(f"{CONFIG}:x", both, later, one, "users") == [(both, one, "users"), (both, later, one, "users")]


def test_patterns_that_fit_nothing_at_all_stay_the_mistakes_that_they_are():
    for config in configs(f"{CONFIG}:x", "training.groups=(('items/adapters/sanb_sound', 0.1),)"):
        with pytest.raises(ConfigError, match="'items/adapters/sanb_sound' matches the beginning of no parameter path"):
            check_groups(config)


def test_modalities_of_one_method_too_many_at_a_time_have_their_patterns_in_each_stage():
    pairs = (("title", "overview"), ("overview", "poster"))
    iisan = ("model.system=iisan", "fusion.kind=concat", "fusion.expert=mlp")
    found = groups(
        f"{ROOT}/configs/movielens.py", "items/adapters/sanb_poster", settings=iisan, stages=pairs, warm_start=False
    )
    assert found == [(), ("items/adapters/sanb_poster",)]


def test_patterns_inside_a_live_backbone_are_left_out_where_it_is(tmp_path):
    (tmp_path / "live.py").write_text(LIVE)
    inside = ("embedded/picture/.*lora", "[a-z]+/picture/blocks")
    assert groups(tmp_path / "live.py", *inside) == [(), inside]
    assert groups(tmp_path / "live.py", "embedded") == [(), ("embedded",)]
