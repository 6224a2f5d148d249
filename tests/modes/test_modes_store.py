"""A run and the hidden-state store that it finds: what is compared, and what is taken as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ml_collections import config_dict

from mmrec_jax import experiment
from mmrec_jax.config import base, modality, resolve
from mmrec_jax.samples.build import MODALITIES
from tests.store.test_extract import contents
from tests.tiny_dataset import write_picture
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


def test_a_replaced_picture_is_encoded_again_but_a_trained_run_reads_what_it_was_trained_on(
    cli, shop, copied, tmp_path
):
    mine = Path(shutil.copytree(shop / "data", tmp_path / "data"))
    source = f"--config.data.source={mine}"
    before = contents(copied / "store" / "picture")
    write_picture(mine / "pictures" / "i07.png", 700)
    write_picture(mine / "pictures" / "i08.png", 800)
    assert cli(arguments(shop, copied, "--mode=evaluate", source))[0] == 0
    assert contents(copied / "store" / "picture") == before
    assert cli(arguments(shop, copied, "--mode=extract", source))[0] == 0
    report = json.loads((copied / "store" / "extraction_report.json").read_text())
    assert {name: part["changed"] for name, part in report.items()} == {"words": 0, "picture": 2}
    after = contents(copied / "store" / "picture")
    assert after["values/c/0/0/0"] != before["values/c/0/0/0"]


def test_an_untrained_run_finds_a_replaced_picture_too(cli, shop, trained, tmp_path):
    mine = Path(shutil.copytree(shop / "data", tmp_path / "data"))
    store = Path(shutil.copytree(trained / "store", tmp_path / "store"))
    write_picture(mine / "pictures" / "i07.png", 700)
    flags = (f"--config.data.source={mine}", f"--config.store={store}", "--config.training.epochs=1")
    assert cli(arguments(shop, tmp_path / "new", *flags, "--config.baselines=()"))[0] == 0
    assert json.loads((store / "extraction_report.json").read_text())["picture"]["changed"] == 1
