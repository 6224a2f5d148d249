"""Settings that depend on the machine or on where things lie: types of products, caches, stores; configs as JSON."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

import mmrec_jax
from mmrec_jax import experiment
from mmrec_jax.config import base, from_json, modality, resolve, to_json
from mmrec_jax.errors import ConfigError
from mmrec_jax.modes.run import keep_compiled_programs
from mmrec_jax.modes.workdir import differences, is_streamed, is_trained
from tests.tiny_config import get_config
from tests.tiny_run import kept_programs


def sample(**modalities):
    config = base("x")
    config.data.source = "sample:movielens_small"
    config.modalities.update(modalities)
    return resolve(config)


def test_a_config_survives_the_way_through_json(shop):
    config = resolve(get_config(str(shop)))
    assert from_json(to_json(config)) == config
    assert differences(to_json(config), to_json(from_json(to_json(config)))) == {}


def test_a_value_of_the_wrong_type_is_named():
    plain = to_json(sample(title=modality(template="{title}")))
    for section, key, value in (
        ("training", "epochs", "3"),
        ("training", "epochs", True),
        ("training", "learning_rate", "x"),
        ("evaluation", "ks", [1.5]),
        ("model", "bottlenecks", [["a", 1, 2]]),
        ("data", "min_rating", "high"),
    ):
        wrong = {**plain, section: {**plain[section], key: value}}
        with pytest.raises(ConfigError, match=f"{section}: {key}=.* must be"):
            from_json(wrong)
    assert from_json({**plain, "data": {**plain["data"], "min_rating": 3}}).data.min_rating == 3


@pytest.mark.parametrize(("backend", "expected"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")])
def test_products_are_bfloat16_on_accelerators_unless_the_config_says_otherwise(monkeypatch, backend, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    config = base("x")
    config.model.system = "sasrec"
    assert experiment.compute_dtype(resolve(config)) == expected
    config.training.compute_dtype = "float32"
    assert experiment.compute_dtype(resolve(config)) == "float32"


def test_compiled_programs_are_kept_where_the_user_says(monkeypatch, tmp_path, compiled):
    config = base("x")
    config.model.system = "sasrec"

    def directory(setting=""):
        config.training.compilation_cache_dir = setting
        jax.config.update("jax_compilation_cache_dir", None)
        keep_compiled_programs(resolve(config))
        return jax.config.values["jax_compilation_cache_dir"]

    with kept_programs(compiled):
        assert directory() == str(compiled)  # of JAX_COMPILATION_CACHE_DIR
        assert directory(str(tmp_path / "own")) == str(tmp_path / "own")
        assert directory("off") is None
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
        assert directory() == str(tmp_path / "caches" / "mmrec_jax" / "compiled")
        (tmp_path / "file").write_text("")
        assert directory(str(tmp_path / "file" / "inside")) is None, "a cache that cannot be made is no reason to stop"


def test_a_samples_own_store_is_used_as_long_as_it_has_all_modalities_and_is_never_written_to():
    overview = modality(template="{title}. {genres}. {overview}")
    inside = Path(mmrec_jax.__file__).parent / "samples"
    workdir = Path("runs") / "x"
    assert experiment.store_location(sample(overview=overview), workdir).startswith(str(inside))
    title = modality(template="{title}")
    assert experiment.store_location(sample(overview=overview, title=title), workdir) == str(workdir / "store")


def test_a_save_that_was_killed_is_no_checkpoint(tmp_path):
    assert not is_trained(tmp_path)
    (tmp_path / "checkpoints" / "step_3.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not is_trained(tmp_path)
    (tmp_path / "checkpoints" / "step_3").mkdir()
    assert is_trained(tmp_path)
    assert is_trained(tmp_path / "checkpoints")


@pytest.mark.parametrize("place", ["stream", "windows/0001/checkpoints"])
def test_a_stream_has_begun_with_its_first_checkpoint(tmp_path, place):
    (tmp_path / place / "step_4.orbax-checkpoint-tmp").mkdir(parents=True)
    assert not is_streamed(tmp_path)
    (tmp_path / place / "step_4").mkdir()
    assert is_streamed(tmp_path)
    assert not is_trained(tmp_path)
