"""Items that are made of something else than before are encoded again, and no others."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmrec_jax.backbones import ModalityConfig
from mmrec_jax.backbones.media import MediaInputs
from mmrec_jax.store import HiddenStateStore, extract, work
from mmrec_jax.store.compact import copied
from mmrec_jax.store.content import changed_items
from mmrec_jax.store.store import ABSENT, PENDING
from tests.store.test_extract import QUIET, contents, counted_items, text
from tests.store.test_extract_bytes import picture
from tests.store.test_store import info, states
from tests.tiny_backbones import write_backbone

IDS = [f"i{number}" for number in range(12)]
TITLES = pl.DataFrame({"item": IDS, "title": [f"red {number}" for number in range(12)]})


def with_title(item: int, title: str | None) -> pl.DataFrame:
    return TITLES.with_columns(
        pl.when(pl.col("item") == IDS[item]).then(pl.lit(title)).otherwise("title").alias("title")
    )


@pytest.fixture
def words(tmp_path: Path) -> dict[str, ModalityConfig]:
    """A text modality, whose store is filled."""
    modality = {"title": text(write_backbone(tmp_path / "bert"))}
    extract(modality, TITLES, tmp_path, tmp_path / "store", QUIET)
    return modality


@pytest.fixture
def covers(tmp_path: Path) -> tuple[dict[str, ModalityConfig], pl.DataFrame, Path]:
    """An image modality whose store is filled, the catalogue, and the folder of the files."""
    media = tmp_path / "media"
    media.mkdir()
    for number, item in enumerate(IDS):
        (media / f"{item}.png").write_bytes(picture(number))
    modality = {
        "cover": ModalityConfig("image", str(write_backbone(tmp_path / "vit", "vit")), path_template="{item}.png")
    }
    catalogue = pl.DataFrame({"item": IDS})
    extract(modality, catalogue, media, tmp_path / "store", QUIET)
    return modality, catalogue, media


def test_an_edited_text_is_encoded_again_and_told(words, tmp_path: Path, monkeypatch, capsys) -> None:
    calls = counted_items(monkeypatch)
    edited = with_title(5, "blue sky")
    report = extract(words, edited, tmp_path, tmp_path / "store", replace(QUIET, progress=True))["title"]
    assert (sum(calls), report.computed, report.changed, report.present) == (1, 1, 1, 12)
    assert "title: 1 of 12 items are made of something else than before" in capsys.readouterr().out
    assert json.loads((tmp_path / "store" / "extraction_report.json").read_text())["title"]["changed"] == 1
    extract(words, edited, tmp_path, tmp_path / "anew", QUIET)
    found, anew = (HiddenStateStore.open(tmp_path / name).table({"title": (0, 3)}, IDS) for name in ("store", "anew"))
    for here, there in zip(found.values["title"], anew.values["title"], strict=True):
        np.testing.assert_allclose(here, there, atol=1e-6)
    assert extract(words, edited, tmp_path, tmp_path / "store", QUIET)["title"].computed == 0


def test_an_item_that_loses_its_text_becomes_absent_and_another_order_is_no_change(words, tmp_path: Path) -> None:
    assert extract(words, TITLES.reverse(), tmp_path, tmp_path / "store", QUIET)["title"].computed == 0
    report = extract(words, with_title(3, None), tmp_path, tmp_path / "store", QUIET)["title"]
    assert (report.changed, report.absent) == (1, 1)
    assert HiddenStateStore.open(tmp_path / "store").status("title")[3] == ABSENT


def test_a_replaced_file_is_encoded_again_and_a_touched_or_copied_one_is_not(covers, tmp_path: Path) -> None:
    modality, catalogue, media = covers
    for number, item in enumerate(IDS):
        os.utime(media / f"{item}.png", ns=(0, number))
    assert extract(modality, catalogue, media, tmp_path / "store", QUIET)["cover"].computed == 0
    clone = Path(shutil.copytree(media, tmp_path / "clone", copy_function=shutil.copyfile))
    assert extract(modality, catalogue, clone, tmp_path / "store", QUIET)["cover"].computed == 0

    same_size = bytearray((clone / "i2.png").read_bytes())
    same_size[-1] ^= 1  # of the checksum that ends the file
    (clone / "i2.png").write_bytes(same_size)
    (clone / "i7.png").write_bytes(picture(70))
    report = extract(modality, catalogue, clone, tmp_path / "store", replace(QUIET, max_failure_share=0.5))["cover"]
    assert (report.computed, report.changed) == (2, 2)


def test_files_that_are_as_they_were_are_not_read(covers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modality, catalogue, media = covers
    store = HiddenStateStore.open(tmp_path / "store")
    read: list[int] = []
    whole = MediaInputs.medium

    def counting(self: MediaInputs, place: int):
        read.append(int(place))
        return whole(self, place)

    monkeypatch.setattr(MediaInputs, "medium", counting)
    assert not changed_items(store, modality, catalogue, media)["cover"].any()
    assert not read
    os.utime(media / "i4.png", ns=(0, 0))
    for _ in range(2):  # the second time the new stamp is known
        assert not changed_items(store, modality, catalogue, media)["cover"].any()
        assert read == [4]


def test_files_that_are_somewhere_else_now_are_taken_as_they_are(covers, tmp_path: Path) -> None:
    modality, catalogue, media = covers
    shutil.rmtree(media)
    assert extract(modality, catalogue, tmp_path, tmp_path / "store", QUIET)["cover"].computed == 0


def test_bytes_in_a_table_are_compared_by_what_they_are(tmp_path: Path) -> None:
    modality = {"cover": ModalityConfig("image", str(write_backbone(tmp_path / "vit", "vit")), column="cover")}
    references = [f"items.parquet#cover:{row}" for row in range(12)]
    catalogue = pl.DataFrame({"item": IDS, "cover": references})

    def write(seeds: list[int]) -> None:
        pl.DataFrame({"item": IDS, "cover": [picture(seed) for seed in seeds]}).write_parquet(
            tmp_path / "items.parquet"
        )

    write(list(range(12)))
    extract(modality, catalogue, tmp_path, tmp_path / "store", QUIET)
    os.utime(tmp_path / "items.parquet", ns=(0, 0))
    assert extract(modality, catalogue, tmp_path, tmp_path / "store", QUIET)["cover"].computed == 0
    write([0, 1, 2, 33, *range(4, 12)])
    assert extract(modality, catalogue, tmp_path, tmp_path / "store", QUIET)["cover"].computed == 1
    # The same bytes from elsewhere: in the rows of another order, and in memory.
    held = pl.read_parquet(tmp_path / "items.parquet")
    assert extract(modality, held, tmp_path, tmp_path / "store", QUIET)["cover"].computed == 0


def test_a_store_without_hashes_is_taken_as_it_is(words, tmp_path: Path) -> None:
    store = HiddenStateStore.create(tmp_path / "old", IDS)
    made = HiddenStateStore.open(tmp_path / "store").modalities["title"]
    store.add_modality("title", replace(made, content_rule=0))
    store.write("title", np.arange(12), np.ones((12, 2, made.width)), np.ones(12, np.uint8))
    path = tmp_path / "old" / "store.json"
    content = json.loads(path.read_text())
    del content["modalities"]["title"]["content_rule"]  # as an earlier version wrote it
    path.write_text(json.dumps(content))
    assert not (tmp_path / "old" / "title" / "content").exists()
    more = pl.concat([with_title(5, "blue sky"), pl.DataFrame({"item": ["late"], "title": ["a late one"]})])
    report = extract(words, more, tmp_path, tmp_path / "old", QUIET)["title"]
    assert (report.computed, report.changed, report.present) == (1, 0, 13)


def test_killed_while_changed_items_are_encoded_the_store_ends_the_same_to_the_byte(
    words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = TITLES.with_columns(pl.col("title") + " of many words")
    shutil.copytree(tmp_path / "store", tmp_path / "whole")
    in_blocks = replace(QUIET, text_batch=1, commit_batches=1)
    assert extract(words, edited, tmp_path, tmp_path / "whole", in_blocks)["title"].changed == 12
    for kind in ("values", "content", "status"):  # killed before each of them is written for the first time
        with monkeypatch.context() as patch:
            write = HiddenStateStore._write

            def killed(self, kind_written, name, rows, values, kind=kind, write=write):
                if kind_written == kind and (kind != "status" or (values != PENDING).any()):
                    raise KeyboardInterrupt
                write(self, kind_written, name, rows, values)

            patch.setattr(HiddenStateStore, "_write", killed)
            with pytest.raises(KeyboardInterrupt):
                extract(words, edited, tmp_path, tmp_path / "store", in_blocks)
        assert (HiddenStateStore.open(tmp_path / "store").status("title") == PENDING).all()
    report = extract(words, edited, tmp_path, tmp_path / "store", in_blocks)["title"]
    assert (report.computed, report.present) == (12, 12)
    stores = [contents(tmp_path / name) for name in ("whole", "store")]
    for store in stores:
        del store["extraction_report.json"]
    assert stores[0] == stores[1]


def test_a_backbone_that_cannot_be_loaded_costs_no_states(words, tmp_path: Path, monkeypatch) -> None:
    def fails(*args, **named):
        raise OSError("no network")

    monkeypatch.setattr(work, "load", fails)
    with pytest.raises(OSError, match="no network"):
        extract(words, with_title(5, "blue sky"), tmp_path, tmp_path / "store", QUIET)
    assert HiddenStateStore.open(tmp_path / "store").complete("title")


def test_hashes_grow_with_the_store_and_are_copied_with_it(tmp_path: Path) -> None:
    store = HiddenStateStore.create(tmp_path / "store", IDS[:7])
    store.add_modality("title", replace(info(), content_rule=1))
    numbers = np.arange(1, 15, dtype=np.uint64).reshape(7, 2)
    store.write("title", np.arange(7), states(), np.ones(7, np.uint8), numbers)
    grown = HiddenStateStore.create(tmp_path / "store", IDS)
    np.testing.assert_array_equal(grown.content("title"), np.concatenate([numbers, np.zeros((5, 2), np.uint64)]))
    few = copied(grown, tmp_path / "few", IDS[2:5])
    np.testing.assert_array_equal(few.content("title"), numbers[2:5])
