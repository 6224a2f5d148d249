"""A run and the hidden-state store that it finds: what is compared, and what is taken as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ml_collections import config_dict

from mmrec_jax import experiment
from mmrec_jax.config import base, modality, resolve
from mmrec_jax.samples.build import MODALITIES
from tests.tiny_run import arguments

INT8 = "--config.extraction.dtype=int8"


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """A workdir of one's own that is trained."""
    return Path(shutil.copytree(trained, tmp_path / "copied"))


def test_a_store_of_another_type_is_refused_with_the_remedy(cli, shop, trained, tmp_path):
    store = f"--config.store={trained / 'store'}"
    code, _, err = cli(arguments(shop, tmp_path / "new", store, INT8))
    assert code == 2
    assert "words: dtype is 'float32' in the store and 'int8' in the config" in err
    assert "extraction.dtype='float32' takes it as is" in err


def test_a_trained_run_reads_its_states_whatever_type_is_asked_for_and_extraction_refuses(cli, shop, copied):
    assert cli(arguments(shop, copied, "--mode=evaluate", INT8))[0] == 0
    code, _, err = cli(arguments(shop, copied, "--mode=extract", INT8))
    assert code == 2
    assert "dtype is 'float32' in the store" in err


def test_the_samples_own_store_serves_configs_of_any_type(tmp_path):
    config: config_dict.ConfigDict = base("sample")
    config.data.source = "sample:movielens_small"
    for name, part in MODALITIES.items():
        config.modalities[name] = modality(**vars(part))
    settings = resolve(config)
    location = experiment.store_location(settings, tmp_path)
    store = experiment.open_store(location)
    assert {info.dtype for info in store.modalities.values()} == {"int8"} != {settings.extraction.dtype}
    prepared = experiment.prepare_data(settings, tmp_path)
    assert experiment.ensure_states(settings, prepared.catalogue, tmp_path).location == location
