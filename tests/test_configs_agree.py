"""Configs that are compared with each other differ in what is compared only."""

from __future__ import annotations

import dataclasses
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from mmrec_jax.adapters.config import METHODS
from mmrec_jax.config import RunConfig, resolve
from mmrec_jax.errors import ConfigError
from mmrec_jax.experiment import id_baseline

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def config_of(name: str, argument: str = "") -> RunConfig:
    return resolve(runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](argument))


def test_the_id_only_config_is_the_baseline_of_the_main_job():
    baseline, own = id_baseline(config_of("crossan")), config_of("sasrec")
    # The item encoder's switches mean nothing to a table of ids.
    apart = {"name", "baselines", "fusion"}
    for field in dataclasses.fields(RunConfig):
        if field.name not in apart:
            assert getattr(own, field.name) == getattr(baseline, field.name), field.name


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("side", ["", ",crossan", ",iisan"])
def test_every_method_has_a_live_config(kind, side):
    config = config_of("live", f"{kind}{side},smoke")
    assert config.methods["title"].kind == kind
    assert config.model.system == (side[1:] or "linear")
    assert not config.cached


def test_a_live_config_knows_its_arguments():
    for argument in ("lorra", "lora,crossan,iisan", "lora,smoke,fast"):
        with pytest.raises(ConfigError, match=r"configs/live\.py:.* does not know the argument"):
            config_of("live", argument)


def test_smoke_is_the_same_job_made_small():
    smoke, full = config_of("crossan", "smoke"), config_of("crossan")
    assert (smoke.data, smoke.baselines, list(smoke.modalities)) == (full.data, full.baselines, list(full.modalities))
    assert smoke.training.epochs < full.training.epochs


def test_three_modalities_are_trained_as_two_are():
    ours, theirs = config_of("movielens"), config_of("crossan")
    apart = {"name", "data", "modalities"}
    for field in dataclasses.fields(RunConfig):
        if field.name not in apart:
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
    assert replace(ours.data, source=theirs.data.source, interactions_file="") == theirs.data
    assert ours.modalities["poster"] == theirs.modalities["poster"]
    assert (
        replace(ours.modalities["overview"], template=theirs.modalities["overview"].template)
        == (theirs.modalities["overview"])
    )


@pytest.mark.parametrize("name", ["iisan", "iisan_versa", "frozen", "sasrec_content", "gru4rec", "sasrec"])
def test_systems_that_are_compared_differ_in_the_model_alone(name):
    ours, theirs = config_of(name), config_of("crossan")
    apart = {"name", "baselines", "model", "fusion", *(("user",) if name == "gru4rec" else ())}
    apart |= {"modalities"} if name in ("gru4rec", "sasrec") else set()
    for field in dataclasses.fields(RunConfig):
        if field.name not in apart:
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
    for key in ("width", "length", "window"):
        assert getattr(ours.model, key) == getattr(theirs.model, key), key
