"""A stream of many windows: what it keeps in memory and on disk does not grow with their number."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from mmrec_jax.errors import StoreError
from mmrec_jax.store import HiddenStateStore
from mmrec_jax.store.compact import copied
from mmrec_jax.store.store import ABSENT, PRESENT, ModalityInfo
from mmrec_jax.streaming import stores
from mmrec_jax.training import load_params
from mmrec_jax.training.checkpoints import Checkpoints


def objects_of_a_call(call) -> float:
    """How many objects a call leaves behind."""
    for _ in range(3):
        call()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(6):
        call()
    gc.collect()
    return (len(gc.get_objects()) - before) / 6


def test_reading_a_checkpoint_leaves_nothing_in_memory(tmp_path):
    params = {"items": {"kernel": np.ones((2, 3), np.float32), "bias": np.zeros(3)}, "empty": {}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params, None, {"step": np.int32(1)}, {}, {"step": 1})
    read, _ = load_params(tmp_path, "last")
    assert (read["empty"], read["items"]["bias"].dtype) == ({}, np.float64)
    assert objects_of_a_call(lambda: load_params(tmp_path, "last")) < 5


def made_store(location, items, dtype="float32") -> HiddenStateStore:
    store = HiddenStateStore.create(location, items)
    rows = store.rows(items)
    rng = np.random.default_rng(0)
    for name in ("words", "picture"):
        store.add_modality(name, ModalityInfo(4, (0, 1), "mean", dtype, {"depth": 1, "weights_sha256": "x"}))
        status = np.where(rng.random(len(items)) < 0.3, ABSENT, PRESENT).astype(np.uint8)
        store.write(name, rows, rng.normal(size=(len(items), 2, 4)).astype(np.float32), status)
    return store


ITEMS = [f"i{number}" for number in range(50)]


def test_reading_a_store_leaves_nothing_in_memory(tmp_path):
    store = made_store(tmp_path / "one", ITEMS, "int8")
    assert objects_of_a_call(lambda: HiddenStateStore.open(store.location).table({"words": (0, 1)}, ITEMS)) < 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_copied_store_holds_the_same_bits_of_the_items_that_were_kept(tmp_path, dtype):
    store, kept = made_store(tmp_path / "one", ITEMS, dtype), ITEMS[7:40:3]
    copy = copied(store, tmp_path / "two", {*kept, "unknown"})
    assert HiddenStateStore.open(tmp_path / "two").item_ids == kept
    wanted = {"words": (0, 1), "picture": (1,)}
    one, two = store.table(wanted, kept), copy.table(wanted, kept)
    for name in wanted:
        np.testing.assert_array_equal(one.present[name], two.present[name])
        for first, second in zip(one.values[name], two.values[name], strict=True):
            np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
        for first, second in zip(one.scales.get(name, ()), two.scales.get(name, ()), strict=True):
            np.testing.assert_array_equal(first, second)


def test_a_store_is_written_anew_once_more_than_a_share_is_not_needed(tmp_path):
    stores.begin(tmp_path)
    made_store(tmp_path / "store", ITEMS)
    assert stores.compact(tmp_path, ITEMS[25:], 0.5) is None  # half of it is
    assert stores.compact(tmp_path, ITEMS[26:], 1.0) is None
    reader = HiddenStateStore.open(tmp_path / "store")
    assert stores.compact(tmp_path, {*ITEMS[26:], "unknown"}, 0.5) == (50, 24)
    assert HiddenStateStore.open(tmp_path / "store").item_ids == ITEMS[26:]
    assert len(reader.table({"words": (0,)}, ITEMS).present["words"]) == 51, "who has opened it reads on"
    more = HiddenStateStore.create(tmp_path / "store", [*ITEMS[26:], "late"])
    assert more.missing(["words"], ["late"]) == {"words": ["late"]}
    assert stores.compact(tmp_path, ITEMS[40:], 0.5) == (25, 10)
    assert sorted(path.name for path in (tmp_path / "stores").iterdir()) == ["000002", "000003"]


def test_a_kill_while_a_store_is_written_anew_leaves_the_one_before(tmp_path, monkeypatch):
    stores.begin(tmp_path)
    made_store(tmp_path / "store", ITEMS)
    for name in ("sync_all", "_point"):  # before it has its name, and before the link is moved

        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(stores, name, killed)
            with pytest.raises(KeyboardInterrupt):
                stores.compact(tmp_path, ITEMS[40:], 0.5)
        stores.begin(tmp_path)
        assert HiddenStateStore.open(tmp_path / "store").item_ids == ITEMS
    assert stores.compact(tmp_path, ITEMS[40:], 0.5) == (50, 10)
    assert [path.name for path in (tmp_path / "stores").iterdir() if path.name.startswith(".")] == []


def test_a_store_that_was_made_before_the_stream_becomes_its_first(tmp_path):
    made_store(tmp_path / "store", ITEMS)
    stores.begin(tmp_path)
    assert (tmp_path / "store").is_symlink()
    assert HiddenStateStore.open(tmp_path / "store").item_ids == ITEMS
    (tmp_path / "store").unlink()  # as a kill may leave it
    stores.begin(tmp_path)
    assert HiddenStateStore.open(tmp_path / "store").item_ids == ITEMS


def test_a_store_of_its_own_is_never_touched(tmp_path):
    made_store(tmp_path / "store", ITEMS)
    assert stores.compact(tmp_path, [], 0.5) is None
    with pytest.raises(StoreError, match="there is no hidden-state store"):
        HiddenStateStore.open(tmp_path / "stores")
