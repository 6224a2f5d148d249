"""Several commands at one store: none loses what another has added, and none encodes what another is encoding."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrec_jax.store import HiddenStateStore, extract, work
from mmrec_jax.store.arrays import key_value_store, open_array, read_version, write_json
from mmrec_jax.store.lock import alone
from mmrec_jax.store.store import PRESENT
from tests.store import extraction_run
from tests.store.test_extract import QUIET, counted_items, text
from tests.store.test_store import IDS, filled, info, states
from tests.tiny_backbones import write_backbone


@pytest.mark.parametrize("location", ["local", "memory://lock-test"])
def test_modalities_that_two_commands_add_are_both_there(location: str, tmp_path: Path) -> None:
    where = tmp_path / "store" if location == "local" else location
    filled(where)
    first, second = HiddenStateStore.open(where), HiddenStateStore.open(where)
    first.add_modality("overview", info())
    first.write("overview", np.arange(7), states(), np.full(7, PRESENT, np.uint8))
    second.add_modality("cover", info())
    second.add_modality("overview", info())  # whose states stay
    store = HiddenStateStore.open(where)
    assert set(store.modalities) == set(second.modalities) == {"title", "overview", "cover"}
    assert store.complete("overview")


def test_a_handle_that_knows_nothing_of_later_items_makes_arrays_for_them_too(tmp_path: Path) -> None:
    filled(tmp_path)
    early = HiddenStateStore.open(tmp_path)
    HiddenStateStore.create(tmp_path, ["new"])
    early.add_modality("cover", info())
    assert early.item_ids == [*IDS, "new"]
    assert open_array(early.files, "cover/status").shape == (8,)


def test_items_that_many_append_at_once_all_get_a_row(tmp_path: Path) -> None:
    filled(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: HiddenStateStore.create(tmp_path, [f"t{number}", "both"]), range(24)))
    store = HiddenStateStore.open(tmp_path)
    assert sorted(store.item_ids) == sorted([*IDS, "both", *(f"t{number}" for number in range(24))])
    assert len(store.status("title")) == 32


def test_a_version_of_a_file_that_somebody_has_replaced_is_not_replaced_again() -> None:
    files = key_value_store("memory://versions")
    missing = read_version(files, "a.json")
    assert missing[0] is None
    assert write_json(files, "a.json", [1], missing[1])
    assert not write_json(files, "a.json", [2], missing[1])
    content, version = read_version(files, "a.json")
    assert content == [1]
    assert write_json(files, "a.json", [3], version)


def test_the_same_extraction_started_twice_encodes_each_item_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modality, catalogue = {"title": text(write_backbone(tmp_path / "bert"))}, extraction_run.catalogue(20)
    calls, loading, go_on = counted_items(monkeypatch), threading.Event(), threading.Event()
    whole = work.load

    def slow(*args, **named):
        loading.set()
        assert go_on.wait(60)
        return whole(*args, **named)

    monkeypatch.setattr(work, "load", slow)

    def run(progress: bool):
        return extract(modality, catalogue, tmp_path, tmp_path / "store", replace(QUIET, progress=progress))["title"]

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(run, False)
        assert loading.wait(60)
        second = threads.submit(run, True)
        threading.Timer(0.5, go_on.set).start()
        assert (first.result().computed, second.result().computed) == (20, 0)
    assert sum(calls) == 19
    assert "Another extraction is writing to the store" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_has_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with alone(tmp_path / "file" / "store"), alone("memory://none"):
        assert not (tmp_path / "file" / "store").exists()


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    told: list[str] = []
    with ThreadPoolExecutor(1) as threads:
        with alone(tmp_path):
            other = threads.submit(lambda: enter(tmp_path, told))
            while not told:
                pass
            assert told == ["waits"]
        other.result()
    assert told == ["waits", "has it"]


def enter(location: Path, told: list[str]) -> None:
    with alone(location, waits=lambda: told.append("waits")):
        told.append("has it")
