"""The hidden-state store: what is written is read, presence, growth, mismatches, and tables in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.backbones import ModalityConfig
from mmrec_jax.errors import StoreError, StoreMismatchError
from mmrec_jax.store import HiddenStateStore, ModalityInfo
from mmrec_jax.store.arrays import create_array, key_value_store, open_array, write_json
from mmrec_jax.store.quantise import quantise
from mmrec_jax.store.store import ABSENT, FAILED, PENDING, PRESENT

LAYERS = (0, 2, 3)
FINGERPRINT = {
    "kind": "text",
    "backbone": "owner/encoder",
    "revision": "",
    "model_type": "bert",
    "weights_sha256": "ab" * 32,
    "width": 5,
    "depth": 4,
    "preprocessing": {"tokenizer_sha256": "cd" * 32, "max_tokens": 30},
    "template": "{title}",
    "pooling": "mean",
    "extraction_version": 1,
}
CONFIG = ModalityConfig("text", "owner/encoder", template="{title}", layers=(0, 2), pooling="mean", max_tokens=30)
IDS = [f"i{n}" for n in range(7)]


def info(dtype: str = "float32") -> ModalityInfo:
    return ModalityInfo(5, LAYERS, "mean", dtype, dict(FINGERPRINT))


def states(items: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(items, 3, 5)).astype(np.float32)


def filled(location: str | Path, dtype: str = "float32") -> HiddenStateStore:
    store = HiddenStateStore.create(location, IDS)
    store.add_modality("title", info(dtype))
    store.write("title", np.arange(7), states(), np.full(7, PRESENT, np.uint8))
    return store


@pytest.mark.parametrize("location", ["local", "memory://store-test"])
def test_a_store_gives_back_what_was_written_at_a_path_and_at_a_url(location: str, tmp_path: Path) -> None:
    where = tmp_path / "store" if location == "local" else location
    filled(where)
    store = HiddenStateStore.open(where)
    assert store.item_ids == IDS
    assert store.modalities == {"title": info()}
    assert store.complete("title")
    table = store.table({"title": (0, 3)}, IDS)
    for position, layer in enumerate((0, 2)):
        np.testing.assert_array_equal(table.values["title"][position][1:], states()[:, layer])


def test_cloud_locations_become_the_drivers_of_tensorstore() -> None:
    assert key_value_store("gs://bucket/folder").spec().to_json() == {
        "driver": "gcs",
        "bucket": "bucket",
        "path": "folder/",
    }
    with pytest.raises(StoreError, match="cannot be opened"):
        key_value_store("nowhere://x")


def test_a_table_is_in_the_catalogues_order_after_a_row_of_padding(tmp_path: Path) -> None:
    filled(tmp_path)
    table = HiddenStateStore.open(tmp_path).table({"title": (0, 2)}, ["i5", "i0", "i6"])
    assert [layer.shape for layer in table.values["title"]] == [(4, 5), (4, 5)]
    rows = jax.jit(lambda table, items: table.rows(items))(table, jnp.asarray([3, 0, 1]))
    np.testing.assert_array_equal(rows.values["title"][1], states()[[6, 0, 5], 1] * [[1], [0], [1]])
    assert rows.present["title"].tolist() == [True, False, True]
    assert table.complete
    assert rows.complete


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 2**-8), ("int8", 0.5 / 127)])
def test_smaller_types_round_within_their_precision(dtype: str, share: float, tmp_path: Path) -> None:
    table = filled(tmp_path, dtype).table({"title": (0,)}, IDS)
    assert table.values["title"][0].dtype == dtype
    made = table.rows(jnp.arange(8)).values["title"][0]
    assert made.dtype == jnp.float32
    largest = np.abs(states()[:, 0]).max(axis=-1, keepdims=True)
    assert (np.abs(made[1:] - states()[:, 0]) <= share * largest * 1.001).all()


def test_int8_takes_a_quarter_of_the_memory(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).normal(size=(50, 2, 384)).astype(np.float32)
    sizes = {}
    for dtype in ("float32", "int8"):
        store = HiddenStateStore.create(tmp_path / dtype, [str(i) for i in range(50)])
        store.add_modality("title", ModalityInfo(384, (0, 1), "mean", dtype, {**FINGERPRINT, "depth": 1}))
        store.write("title", np.arange(50), wide, np.full(50, PRESENT, np.uint8))
        sizes[dtype] = store.table({"title": (0, 1)}, store.item_ids).nbytes
    assert sizes["int8"] < 0.26 * sizes["float32"]


def test_quantised_zeros_stay_zeros() -> None:
    values, scales = quantise(np.zeros((2, 1, 4), np.float32))
    assert not values.any()
    assert not scales.any()


def test_absent_failed_and_pending_items_differ(tmp_path: Path) -> None:
    store = HiddenStateStore.create(tmp_path, IDS)
    store.add_modality("title", info())
    status = np.array([PRESENT, ABSENT, FAILED], np.uint8)
    store.write("title", np.arange(3), states(3) * (status == PRESENT)[:, None, None], status)
    assert not store.complete("title")
    assert store.missing(["title", "cover"], ["i2", "i3", "new"]) == {
        "title": ["i3", "new"],
        "cover": ["i2", "i3", "new"],
    }
    table = store.table({"title": (0,)}, IDS[:3])
    assert table.present["title"].tolist() == [False, True, False, False]
    assert not table.complete
    with pytest.raises(StoreError, match=r"title is not extracted for 4 items: i3, i4, i5, i6: run --mode=extract"):
        store.table({"title": (0,)}, IDS)
    with pytest.raises(StoreError, match=r"lacks 1 items of the catalogue: new"):
        store.table({"title": (0,)}, ["i0", "new"])


def test_new_items_and_modalities_leave_what_is_there_untouched(tmp_path: Path) -> None:
    filled(tmp_path)
    grown = HiddenStateStore.create(tmp_path, ["new", "i3"])
    assert grown.item_ids == [*IDS, "new"]
    grown.add_modality("cover", replace(info("int8"), pooling="cls"))
    grown.write("title", np.array([7]), states(1, seed=1), np.array([PRESENT], np.uint8))
    store = HiddenStateStore.open(tmp_path)
    assert set(store.modalities) == {"title", "cover"}
    assert (store.status("cover") == PENDING).all()
    values = store.table({"title": (0,)}, store.item_ids).values["title"][0]
    np.testing.assert_array_equal(values[1:], np.concatenate([states()[:, 0], states(1, seed=1)[:, 0]]))


def test_files_stay_small_and_few(tmp_path: Path) -> None:
    files = key_value_store(tmp_path)
    create_array(files, "values", (5000, 7, 384), "float32")
    array = open_array(files, "values")
    array[...] = np.ones((5000, 7, 384), np.float32)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert max(sizes) <= 4 * 2**20 + 7 * 384 * 4
    assert len(sizes) == 14


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_states_that_are_not_finite_are_refused_with_the_items(bad: float, tmp_path: Path) -> None:
    store = filled(tmp_path)
    broken = states()
    broken[4, 1, 2] = bad
    with pytest.raises(StoreError, match=r"modality title are not finite .* for 1 items: i4"):
        store.write("title", np.arange(7), broken, np.full(7, PRESENT, np.uint8))
    # Damage that came after writing is found on reading.
    open_array(store.files, "title/values")[4, 1, 2] = bad
    with pytest.raises(StoreError, match=r"modality title are not finite .* i4"):
        store.table({"title": (0, 2)}, IDS)


def test_a_config_that_fits_passes_the_check(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.check({"title": CONFIG})
    store.check({"title": replace(CONFIG, layers=(3,))})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "{title}. {plot}"}, r"template is '{title}' in the store and '{title}. {plot}' in the config"),
        ({"pooling": "cls"}, "pooling is 'mean' in the store and 'cls' in the config"),
        ({"compute_dtype": "bfloat16"}, "compute_dtype is 'float32' in the store and 'bfloat16' in the config"),
        ({"max_tokens": 64}, "max_tokens is 30 in the store and 64 in the config"),
        ({"layers": (0, 1)}, r"layers \[1\] are not among the stored layers \[0, 2, 3\]"),
        ({"layers": (9,)}, "layers: layer 9 was asked for, but the backbone has hidden states 0 to 4"),
        ({"layers": ()}, r"layers \[4\] are not among"),
        ({"backbone": "owner/other"}, "backbone is 'owner/encoder' in the store and 'owner/other' in the config"),
        ({"revision": "v2"}, "revision is '' in the store and 'v2' in the config"),
        ({"kind": "image", "template": "", "path_template": "{title}"}, "kind is 'text' in the store"),
    ],
)
def test_a_store_made_in_another_way_says_what_differs(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(StoreMismatchError, match=f"title: {message}"):
        filled(tmp_path).check({"title": replace(CONFIG, **changes)})


@pytest.mark.parametrize(
    ("made", "kept", "seconds", "message"),
    [
        ({"features": "Waveform"}, 30.0, 5.0, "cut after 30 s in the store and would be after 5 s with max_seconds=5"),
        ({"features": "Waveform"}, 5.0, 30.0, "cut after 5 s in the store and would be after 30 s"),
        ({"features": "WhisperLogMel", "seconds": 20}, 10.0, 30.0, "after 10 s in the store and would be after 20 s"),
        ({"features": "WhisperLogMel", "seconds": 20}, 20.0, 30.0, ""),
        ({"features": "KaldiLogMel", "frames": 1024}, 10.255, 30.0, ""),
        ({"features": "KaldiLogMel", "frames": 1024}, 10.255, 4.0, "would be after 4 s"),
    ],
)
def test_recordings_cut_elsewhere_than_asked_for_are_a_difference_also_of_backbones_of_the_hub(
    made: dict, kept: float, seconds: float, message: str, tmp_path: Path
) -> None:
    preprocessing = {"rate": 16_000, "longest": round(16_000 * kept), "shortest": 1, **made}
    stored = {**FINGERPRINT, "kind": "audio", "model_type": "x", "template": "{file}", "preprocessing": preprocessing}
    store = HiddenStateStore.create(tmp_path, IDS)
    store.add_modality("sound", replace(info(), fingerprint=stored))
    config = ModalityConfig("audio", "owner/encoder", column="file", layers=(0, 2), max_seconds=seconds)
    if not message:
        store.check({"sound": config})
        return
    with pytest.raises(StoreMismatchError, match=message):
        store.check({"sound": config})


def test_another_type_than_is_asked_for_is_a_difference_with_its_remedy(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.check({"title": CONFIG})
    store.check({"title": CONFIG}, "float32")
    message = r"title: dtype is 'float32' in the store and 'int8' in the config \(extraction.dtype='float32' takes"
    with pytest.raises(StoreMismatchError, match=message):
        store.check({"title": CONFIG}, "int8")


def test_all_differences_of_all_modalities_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(StoreMismatchError) as caught:
        filled(tmp_path).check({"title": replace(CONFIG, pooling="cls", max_tokens=64), "cover": CONFIG})
    assert all(part in str(caught.value) for part in ("pooling", "max_tokens", "cover: the store has only title"))


def test_unknown_modalities_and_layers_are_errors_of_the_table(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(StoreError, match="no modality 'cover'; it has title"):
        store.table({"cover": (0,)}, IDS)
    with pytest.raises(StoreError, match=r"layers \[1\] are not stored; stored are \[0, 2, 3\]"):
        store.table({"title": (1,)}, IDS)


def test_a_missing_damaged_or_newer_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no hidden-state store at"):
        HiddenStateStore.open(tmp_path / "none")
    store = filled(tmp_path / "newer")
    write_json(store.files, "store.json", {"format": 99, "modalities": {}})
    with pytest.raises(StoreError, match="format 99"):
        HiddenStateStore.open(tmp_path / "newer")
    (tmp_path / "newer" / "store.json").write_text("{")
    with pytest.raises(StoreError, match="not valid JSON"):
        HiddenStateStore.open(tmp_path / "newer")
    filled(tmp_path / "cut")
    (tmp_path / "cut" / "title" / "values" / "zarr.json").unlink()
    with pytest.raises(StoreError, match="cannot be opened"):
        HiddenStateStore.open(tmp_path / "cut").table({"title": (0,)}, IDS)


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file/store/.*json cannot be (read|written)"):
        HiddenStateStore.create(tmp_path / "file" / "store", IDS)


def test_a_process_killed_while_items_are_appended_leaves_a_store_that_works(tmp_path: Path) -> None:
    store = filled(tmp_path)
    for kind in ("values", "status"):
        array = open_array(store.files, f"title/{kind}")
        array.resize(exclusive_max=[9, *array.shape[1:]]).result()
    store = HiddenStateStore.open(tmp_path)
    assert store.complete("title")
    np.testing.assert_array_equal(store.table({"title": (0,)}, IDS).values["title"][0][1:], states()[:, 0])
    grown = HiddenStateStore.create(tmp_path, ["new"])
    assert grown.missing(["title"], [*IDS, "new"]) == {"title": ["new"]}


def test_item_ids_are_distinct_and_modality_names_are_identifiers(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="distinct"):
        HiddenStateStore.create(tmp_path, ["a", "a"])
    with pytest.raises(StoreError, match="letters, digits and underscores"):
        HiddenStateStore.create(tmp_path, ["a"]).add_modality("../x", info())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_a_table_is_read_without_a_second_copy(tmp_path: Path) -> None:
    items = 20_000
    store = HiddenStateStore.create(tmp_path, [str(i) for i in range(items)])
    store.add_modality("title", ModalityInfo(384, (0, 1), "mean", "float32", {**FINGERPRINT, "depth": 1}))
    store.write("title", np.arange(items), np.ones((items, 2, 384), np.float32), np.full(items, PRESENT, np.uint8))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
    before = memory("VmRSS")
    table = store.table({"title": (0, 1)}, store.item_ids)
    # Beside the table: chunks of 4 MB, four in flight and one being copied. A second copy would be another 61 MB.
    assert table.nbytes > 60e6
    assert memory("VmHWM") - before < table.nbytes + 40e6


def memory(kind: str) -> int:
    """Resident memory of this process in bytes: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) * 1024
