"""Groups of parameters are held against the parameters of a config before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from mmrec_jax.config import RunConfig, resolve
from mmrec_jax.config_files import load_config
from mmrec_jax.errors import ConfigError
from mmrec_jax.modes.groups import check_groups
from tests.tiny_run import ROOT

POSTERS = "items/adapters/transform_poster"


def config_of(name: str, *groups: str, **changes) -> RunConfig:
    config = resolve(load_config(f"{ROOT}/configs/{name}"))
    pairs = tuple((pattern, 0.1) for pattern in groups)
    return replace(config, training=replace(config.training, groups=pairs), **changes)


def refused(config: RunConfig) -> str:
    with pytest.raises(ConfigError) as error:
        check_groups(config)
    return str(error.value)


def test_every_pattern_that_fits_nothing_is_named_with_what_is_near():
    told = refused(config_of("crossan.py", "items/adapters/sanb_poster_9", "items/adapters/sanb_poster_1", "users/.*z"))
    first, second = told.splitlines()
    assert "'items/adapters/sanb_poster_9' matches the beginning of no parameter path" in first
    assert "near it are items/adapters/sanb_poster_" in first
    assert "'users/.*z'" in second


def test_a_parameter_in_two_groups_is_found():
    assert "items/embedding is matched by ['items/e', 'items']" in refused(config_of("gru4rec.py", "items/e", "items"))


def test_what_depends_on_the_widths_of_backbones_is_a_mistake_where_it_always_is():
    check_groups(config_of("iisan_versa.py", POSTERS))
    check_groups(config_of("crossan.py", POSTERS))
    assert POSTERS in refused(config_of("iisan.py", POSTERS))  # takes backbones of one width only


def test_what_is_not_known_before_a_backbone_is_loaded_is_left_to_the_training():
    check_groups(config_of("live.py:lora", "embedded/title/whatever", "[a-z]+/title/whatever"))
    assert "items/towers" in refused(config_of("live.py:lora", "embedded/title/whatever", "items/towers"))
    config = config_of("crossan.py", "items/adapters/sanb_poster_9", "users/nothing")
    modalities = config.modalities | {"poster": replace(config.modalities["poster"], layers=())}
    assert refused(replace(config, modalities=modalities)).startswith("training.groups: 'users/nothing'")


def test_no_device_is_used():
    # The runs of a comparison need them, and an accelerator serves one process.
    code = (
        "from tests.modes.test_groups import config_of, refused; from jax._src import xla_bridge\n"
        "refused(config_of('crossan.py', 'items/none')); assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
