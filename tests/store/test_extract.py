"""Extraction: what is written, what is left alone, what stops it, and being killed."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from PIL import Image

from mmrec_jax.backbones import ExtractionConfig, ModalityConfig
from mmrec_jax.backbones.backbone import load
from mmrec_jax.backbones.encode import PooledEncoder
from mmrec_jax.backbones.family import Tokens
from mmrec_jax.errors import BackboneError, ConfigError, StoreError, StoreMismatchError
from mmrec_jax.store import HiddenStateStore, extract
from mmrec_jax.store.store import PENDING, PRESENT
from tests.store import extraction_run
from tests.tiny_backbones import write_backbone

QUIET = ExtractionConfig(text_batch=4, image_batch=2, commit_batches=2, progress=False)


def text(backbone: Path, **changes) -> ModalityConfig:
    return replace(ModalityConfig("text", str(backbone), template="{title}", layers=(0, 3), max_tokens=16), **changes)


def counted_items(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many inputs each call of the encoder got."""
    calls: list[int] = []
    whole = PooledEncoder.__call__

    def counting(self: PooledEncoder, inputs):
        every = list(inputs)
        calls.append(len(every))
        return whole(self, every)

    monkeypatch.setattr(PooledEncoder, "__call__", counting)
    return calls


def test_the_store_holds_the_pooled_states_of_each_item(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "bert")
    catalogue = extraction_run.catalogue(30)
    reports = extract({"title": text(folder)}, catalogue, tmp_path, tmp_path / "store", QUIET)
    report = reports["title"]
    assert (report.items, report.present, report.absent, report.failed, report.computed) == (30, 29, 1, 0, 30)
    assert report.reasons == {"item0": "empty text"}
    assert json.loads((tmp_path / "store" / "extraction_report.json").read_text())["title"]["present"] == 29

    store = HiddenStateStore.open(tmp_path / "store")
    store.check({"title": text(folder)})
    table = store.table({"title": (0, 3)}, catalogue["item"].to_list())
    assert not table.present["title"][1]
    backbone = load(str(folder), max_tokens=16)
    for row in (2, 17, 30):
        ids = backbone.preprocess([catalogue["title"][row - 1]])[0]
        states = backbone.hidden_states(Tokens(jnp.asarray(ids[None]), jnp.ones((1, len(ids)), bool)))
        for position, layer in enumerate((0, 3)):
            np.testing.assert_allclose(table.values["title"][position][row], states[layer][0].mean(0), atol=1e-5)


def test_finished_items_are_never_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_backbone(tmp_path / "bert")
    calls = counted_items(monkeypatch)
    first, more = extraction_run.catalogue(20), extraction_run.catalogue(30)
    extract({"title": text(folder)}, first, tmp_path, tmp_path / "store", QUIET)
    assert sum(calls) == 19
    again = extract({"title": text(folder)}, first, tmp_path, tmp_path / "store", QUIET)
    assert (sum(calls), again["title"].computed, again["title"].absent) == (19, 0, 1)
    extract({"title": text(folder)}, more, tmp_path, tmp_path / "store", QUIET)
    assert sum(calls) == 29
    # Fewer layers than are stored are no reason to extract anything.
    extract({"title": text(folder, layers=(3,))}, more, tmp_path, tmp_path / "store", QUIET)
    assert sum(calls) == 29


def test_modalities_with_the_same_inputs_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_backbone(tmp_path / "bert")
    calls = counted_items(monkeypatch)
    extraction_run.run(folder, tmp_path / "store", items=20)
    assert sum(calls) == 19
    assert set(HiddenStateStore.open(tmp_path / "store").modalities) == {"title", "first"}


def test_a_modality_added_later_leaves_the_others_bytes_alone(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "bert")
    catalogue = extraction_run.catalogue(20)
    extract({"title": text(folder)}, catalogue, tmp_path, tmp_path / "store", QUIET)
    before = contents(tmp_path / "store" / "title")
    both = {"title": text(folder), "first": text(folder, pooling="cls")}
    extract(both, catalogue, tmp_path, tmp_path / "store", QUIET)
    assert contents(tmp_path / "store" / "title") == before
    assert HiddenStateStore.open(tmp_path / "store").missing(["first"], catalogue["item"].to_list()) == {"first": []}


def test_broken_media_are_listed_and_mended_ones_are_taken_on_the_next_run(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "vit", "vit")
    media = tmp_path / "media"
    media.mkdir()
    rng = np.random.default_rng(0)
    for item in range(1, 11):
        Image.fromarray(rng.integers(0, 256, (40, 30 + item, 3), np.uint8)).save(media / f"{item}.png")
    (media / "3.png").write_bytes((media / "3.png").read_bytes()[:200])
    (media / "7.png").unlink()
    catalogue = pl.DataFrame({"item": range(1, 11)})
    modality = {"cover": ModalityConfig("image", str(folder), path_template="{item}.png", pooling="cls")}
    tolerant = replace(QUIET, max_failure_share=0.2)
    report = extract(modality, catalogue, media, tmp_path / "store", tolerant)["cover"]
    assert (report.present, report.failed) == (8, 2)
    assert set(report.reasons) == {"3", "7"}
    assert report.reasons["7"] == "file not found"
    assert report.reasons["3"].startswith("broken image")

    Image.new("RGB", (32, 32)).save(media / "7.png")
    report = extract(modality, catalogue, media, tmp_path / "store", tolerant)["cover"]
    assert (report.present, report.failed, report.computed) == (9, 1, 2)
    assert set(report.reasons) == {"3"}


def test_too_many_failures_are_an_error_with_examples_and_a_report(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "vit", "vit")
    catalogue = pl.DataFrame({"item": [f"{i}" for i in range(40)]})
    modality = {"cover": ModalityConfig("image", str(folder), path_template="{item}.png")}
    with pytest.raises(StoreError, match=r"cover: the media of 4 of 40 items are broken .* 0.05 \(0: file not found"):
        extract(modality, catalogue, tmp_path, tmp_path / "store", QUIET)
    assert json.loads((tmp_path / "store" / "extraction_report.json").read_text())["cover"]["failed"] == 4


def test_a_modality_that_no_item_has_is_an_error(tmp_path: Path) -> None:
    catalogue = pl.DataFrame({"item": ["a", "b"], "title": [None, ""]}, schema={"item": pl.String, "title": pl.String})
    with pytest.raises(StoreError, match="not one of 2 items has it"):
        extract({"title": text(write_backbone(tmp_path / "b"))}, catalogue, tmp_path, tmp_path / "store", QUIET)


def test_a_store_made_in_another_way_is_not_written_to(tmp_path: Path) -> None:
    folder, other = write_backbone(tmp_path / "bert"), write_backbone(tmp_path / "other", "bert_masked_lm")
    catalogue = extraction_run.catalogue(10)
    extract({"title": text(folder)}, catalogue, tmp_path, tmp_path / "store", QUIET)
    for changed, message in (
        (text(folder, pooling="cls"), "pooling is 'mean'"),
        (text(other), "weights"),
        (text(folder, max_tokens=12), "max_tokens"),
        (text(folder, layers=(1,)), r"layers \[1\]"),
    ):
        for rows in (10, 12):
            with pytest.raises(StoreMismatchError, match=message):
                extract({"title": changed}, extraction_run.catalogue(rows), tmp_path, tmp_path / "store", QUIET)


@pytest.mark.parametrize("items", [10, 12])
def test_a_store_of_another_type_is_not_written_to_and_the_remedy_is_told(items: int, tmp_path: Path) -> None:
    modality = {"title": text(write_backbone(tmp_path / "bert"))}
    extract(modality, extraction_run.catalogue(10), tmp_path, tmp_path / "store", QUIET)
    asked = replace(QUIET, dtype="int8")
    with pytest.raises(StoreMismatchError, match=r"dtype is 'float32' .* and 'int8' .* \(extraction.dtype='float32'"):
        extract(modality, extraction_run.catalogue(items), tmp_path, tmp_path / "store", asked)


def test_another_name_for_the_same_weights_fits_the_store(tmp_path: Path) -> None:
    folder, copy = write_backbone(tmp_path / "bert"), write_backbone(tmp_path / "copy")
    named = replace(text(folder), backbone="owner/encoder")
    mirrors = {"owner/encoder": str(folder)}
    extract({"title": named}, extraction_run.catalogue(10), tmp_path, tmp_path / "store", QUIET, mirrors)
    store = HiddenStateStore.open(tmp_path / "store")
    assert store.modalities["title"].fingerprint["backbone"] == "owner/encoder"
    store.check({"title": named})
    store.check({"title": text(copy)})
    other = write_backbone(tmp_path / "other", "bert_masked_lm")
    with pytest.raises(StoreMismatchError, match=r"'owner/encoder' with weights \w{12} in the store and"):
        store.check({"title": text(other)})


def test_other_preprocessing_of_the_same_weights_does_not_fit_the_store(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "vit", "vit")
    Image.new("RGB", (40, 40)).save(tmp_path / "1.png")
    modality = {"cover": ModalityConfig("image", str(folder), path_template="{item}.png")}
    catalogue = pl.DataFrame({"item": ["1"]})
    extract(modality, catalogue, tmp_path, tmp_path / "store", QUIET)
    store = HiddenStateStore.open(tmp_path / "store")
    store.check(modality)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": {"shortest_edge": 36}}))
    with pytest.raises(StoreMismatchError, match="cover: preprocessing has shortest_edge 32 in the store and 36 in"):
        store.check(modality)


def test_a_backbone_of_another_kind_and_a_catalogue_without_ids_are_errors(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "vit", "vit")
    with pytest.raises(BackboneError, match="encodes image, not text"):
        extract({"title": text(folder)}, extraction_run.catalogue(3), tmp_path, tmp_path / "store", QUIET)
    with pytest.raises(ConfigError, match="column 'item'"):
        extract({"title": text(folder)}, pl.DataFrame({"title": ["a"]}), tmp_path, tmp_path / "store", QUIET)


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_the_store_is_the_same_to_the_byte(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path / "bert")
    extraction_run.run(folder, tmp_path / "whole")
    command = [sys.executable, "-m", "tests.store.extraction_run", str(folder), str(tmp_path / "killed")]
    moments = random.Random(0)
    killed = 0
    for _ in range(3):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        while not (tmp_path / "killed" / "title" / "status" / "c" / "0").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.02, 0.4))
        process.kill()
        killed += process.wait() != 0
    assert killed == 3
    reports = extraction_run.run(folder, tmp_path / "killed")
    assert 0 < reports["title"].computed < 400
    ignored = {"extraction_report.json"}
    whole, resumed = contents(tmp_path / "whole"), contents(tmp_path / "killed")
    assert {k: v for k, v in resumed.items() if k not in ignored} == {
        k: v for k, v in whole.items() if k not in ignored
    }


def absent_items(items: int) -> list[str]:
    return [f"item{i}" for i in range(0, items, 50)]


def started(folder: Path, store: Path, count: int) -> list[subprocess.Popen]:
    """Processes that share an extraction into `store`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.store.extraction_run", str(folder), str(store), str(port)]
    return [subprocess.Popen([*command, str(i), str(count)], cwd=Path(__file__).parents[2]) for i in range(count)]


@pytest.mark.long
def test_processes_share_a_catalogue_and_losing_one_costs_only_a_restart_with_any_number(tmp_path: Path) -> None:
    folder, killed, alone = write_backbone(tmp_path / "bert"), tmp_path / "killed", tmp_path / "alone"
    extraction_run.run(folder, tmp_path / "whole")
    first, second = started(folder, killed, 2)
    while not (killed / "title" / "status" / "c" / "0").exists() and second.poll() is None:
        time.sleep(0.01)
    time.sleep(0.1)
    for process in (second, first):
        process.kill()
        assert process.wait() != 0
    status = HiddenStateStore.open(killed).status("title")
    assert (status == PENDING).any()
    assert (status != PENDING).any()
    shutil.copytree(killed, alone)

    for process in started(folder, killed, 2):
        assert process.wait() == 0
    extraction_run.run(folder, alone)
    stores = [contents(place) for place in (tmp_path / "whole", killed, alone)]
    reports = [json.loads(store.pop("extraction_report.json"))["title"] for store in stores]
    assert stores[1] == stores[0]
    assert stores[2] == stores[0]
    assert [report["reasons"] for report in reports] == [dict.fromkeys(absent_items(400), "empty text")] * 3
    assert [report["present"] for report in reports] == [392] * 3


@pytest.mark.slow
def test_processes_share_items_that_have_changed(tmp_path: Path) -> None:
    folder, place = write_backbone(tmp_path / "bert"), tmp_path / "store"
    extraction_run.run(folder, place)
    before, store = contents(place), HiddenStateStore.open(place)
    odd = np.arange(1, 400, 2)
    other = store.content("title")
    other[odd, 0] ^= np.uint64(1)  # as if they had been made of other titles
    store.write("title", odd, np.ones((200, 2, 24)), np.full(200, PRESENT, np.uint8), other[odd])
    for process in started(folder, place, 2):
        assert process.wait() == 0
    after = contents(place)
    assert json.loads(after.pop("extraction_report.json"))["title"]["changed"] == 200
    del before["extraction_report.json"]
    assert after == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
