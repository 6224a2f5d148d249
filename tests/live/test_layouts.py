"""Raw inputs of a batch in parts: every item is found where it is said to be, in shapes that were chosen before."""

from __future__ import annotations

import fcntl
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import polars as pl
import pytest

from mmrec_jax.backbones.backbone import load
from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig
from mmrec_jax.backbones.family import Tokens
from mmrec_jax.backbones.packing import LEAST
from mmrec_jax.errors import ConfigError
from mmrec_jax.live.inputs import RawInputs, _put, prepare_inputs
from mmrec_jax.live.parts import ByLength, Grouped, Layout, Packed, RawBatch
from mmrec_jax.live.stream import LiveStream
from mmrec_jax.share import Share
from mmrec_jax.types import SequenceBatch
from tests.tiny_backbones import write_backbone

LENGTHS = [0, 3, 17, 64, 9, 0, 70, 90, 12, 5, 33]


def ragged(lengths: list[int]) -> RawInputs:
    starts = np.cumsum([0, *lengths])
    return RawInputs(np.arange(1, starts[-1] + 1, dtype=np.int32), starts, np.asarray(lengths) > 0, ())


def text_at(batch: RawBatch, place: int, width: int) -> list[int]:
    """The tokens whose vector is at a place among those of all parts."""
    for part in batch.parts:
        assert isinstance(part, Tokens)
        slots = width // LEAST if part.texts is not None else 1
        if place < len(part.ids) * slots:
            row, text = divmod(place, slots)
            mask = part.mask[row] if part.texts is None else part.texts[row] == text + 1
            return part.ids[row][mask].tolist()
        place -= len(part.ids) * slots
    raise AssertionError("no part has this place")


class NoPreprocessing:
    """Neither sound nor pixels."""


@pytest.mark.parametrize("packed", [True, False])
def test_every_item_lies_where_it_is_said_to_and_absent_ones_nowhere(packed: bool, monkeypatch) -> None:
    inputs = ragged(LENGTHS)
    monkeypatch.setattr("mmrec_jax.live.parts.TextPreprocessor", NoPreprocessing)
    layout: Layout = Packed(inputs, 64, 96, 2) if packed else ByLength(inputs, NoPreprocessing(), (16, 64, 96), 2)
    batches = [np.asarray(rows) for rows in ([0, 1, 2, 3, 4, 6, 7], [0, 10, 9, 8, 7, 5, 0, 0], [0, 0])]
    most = tuple(np.max([layout.needed(rows) for rows in batches], axis=0).tolist())
    shapes = set()
    for rows in batches:
        batch = layout.batch(rows, layout.sizes(most))
        shapes.add(str([part.ids.shape for part in batch.parts]))
        np.testing.assert_array_equal(batch.present, np.asarray(LENGTHS)[rows] > 0)
        for row, place, present in zip(rows, batch.places, batch.present, strict=True):
            if present:
                assert text_at(batch, int(place), 64) == inputs[row].tolist()
        assert len(set(batch.places[batch.present])) == batch.present.sum()
    assert len(shapes) == 1
    assert all(count % 2 == 0 for count in layout.sizes(most))


@pytest.mark.parametrize("packed", [True, False])
def test_over_devices_each_part_of_the_items_is_found_among_the_rows_of_its_own_device(packed, monkeypatch) -> None:
    inputs, groups = ragged(LENGTHS), 2
    monkeypatch.setattr("mmrec_jax.live.parts.TextPreprocessor", NoPreprocessing)
    own: Layout = Packed(inputs, 64, 96, 2) if packed else ByLength(inputs, NoPreprocessing(), (16, 64, 96), 2)
    layout = Grouped(own, groups)
    rows = np.asarray([0, 1, 2, 3, 4, 6, 7, 10, 9, 8])
    batch = layout.batch(rows, layout.sizes(layout.needed(rows)))
    leaves, tree = jax.tree.flatten(batch)
    devices = [jax.tree.unflatten(tree, own) for own in zip(*(np.split(leaf, groups) for leaf in leaves), strict=True)]
    for items, of_device in zip(np.split(rows, groups), devices, strict=True):
        for row, present, place in zip(items, of_device.present, of_device.places, strict=True):
            assert present == (LENGTHS[row] > 0)
            if present:
                assert text_at(of_device, int(place), 64) == inputs[row].tolist()


@pytest.mark.parametrize("packed", [True, False])
def test_a_process_reads_the_inputs_of_its_own_rows_only(packed: bool, monkeypatch) -> None:
    inputs = ragged(LENGTHS)
    monkeypatch.setattr("mmrec_jax.live.parts.TextPreprocessor", NoPreprocessing)
    layout: Layout = Packed(inputs, 64, 96, 4) if packed else ByLength(inputs, NoPreprocessing(), (16, 64, 96), 4)
    rows = np.asarray([0, 1, 2, 3, 4, 6, 7, 8, 9, 10])
    sizes = layout.sizes(layout.needed(rows))
    whole = layout.batch(rows, sizes)
    read: list[set[int]] = []
    take = RawInputs.__getitem__
    monkeypatch.setattr(RawInputs, "__getitem__", lambda self, row: read[-1].add(int(row)) or take(self, row))
    parts = []
    for group in range(4):
        read.append(set())
        parts.append(layout.batch(rows, sizes, Share(4, (group,))))
    assert sum(map(len, read)) == len(set().union(*read)) == np.count_nonzero(whole.present)
    for part in parts:
        np.testing.assert_array_equal(part.places, whole.places)
    for number, block in enumerate(whole.parts):
        for name in ("ids", "mask"):
            found = [next(iter(getattr(part.parts[number], name).parts.values())) for part in parts]
            np.testing.assert_array_equal(np.concatenate(found), getattr(block, name))


def test_longer_parts_take_shorter_items_before_more_rows_are_made() -> None:
    layout = ByLength(ragged([0, 5, 5, 5, 20]), NoPreprocessing(), (8, 24), 2)
    assert layout.needed(np.arange(5)) == (4, 1)
    assert layout.sizes((4, 1)) == (2, 2)


def batch_of(items: list[int]) -> SequenceBatch:
    nothing = np.zeros(1, np.int32)
    return SequenceBatch(np.asarray(items), nothing, nothing, nothing, nothing)


def test_a_batch_of_a_size_that_was_not_foreseen_gets_its_inputs_too(monkeypatch) -> None:
    monkeypatch.setattr("mmrec_jax.live.parts.TextPreprocessor", NoPreprocessing)
    inputs, later = ragged([0, 5, 5, 5, 20]), batch_of([0, 1, 2, 3, 4])

    class Stream:
        def sizes(self):
            return [(3, 1), (4, 1)]  # the second one does not occur among the batches that are tried

        def sample(self, most):
            return iter([batch_of([0, 1, 4])]), True

        def __next__(self):
            return later

    part = SimpleNamespace(layout=lambda inputs, groups: ByLength(inputs, NoPreprocessing(), (8, 24), 2))
    backbones, catalogue = SimpleNamespace(backbones={"a": part}), SimpleNamespace(inputs={"a": inputs})
    made = next(LiveStream(Stream(), backbones, catalogue)).media["a"]
    found = np.concatenate([block.ids.sum(axis=1) for block in made.parts])[made.places]
    assert [int(found[row]) for row in range(1, 5)] == [int(inputs[row].sum()) for row in range(1, 5)]


def test_a_modality_that_no_item_has_is_refused_before_training() -> None:
    backbones, catalogue = SimpleNamespace(backbones={"a": None}), SimpleNamespace(inputs={"a": ragged([0, 0])})
    with pytest.raises(ConfigError, match=r"methods\.a: no item has this modality"):
        LiveStream(None, backbones, catalogue)


def test_what_a_killed_preparation_left_goes_when_no_other_is_under_way(tmp_path: Path) -> None:
    preprocess = load(str(write_backbone(tmp_path / "bert")), max_tokens=6).preprocess
    modality = ModalityConfig("text", "x", template="{title}")
    catalogue = pl.DataFrame({"item": ["1", "2"], "title": ["a b", "c"]})
    folder = tmp_path / "inputs"
    left = folder / ".words-of-another-config.123456789"
    left.mkdir(parents=True)
    (left / "values.bin").touch()

    def prepare() -> RawInputs:
        return prepare_inputs(modality, preprocess, catalogue, tmp_path, ExtractionConfig(), folder / "words", "words")

    with ThreadPoolExecutor(1) as others, (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = others.submit(prepare)
        with pytest.raises(TimeoutError):
            made.result(timeout=0.5)
        assert left.exists()
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert made.result(timeout=60).present.tolist() == [False, True, True]
    assert {path.name for path in folder.iterdir()} == {".lock", "words"}


def test_of_two_processes_that_prepare_inputs_the_later_one_keeps_what_is_open(tmp_path: Path) -> None:
    for name in ("first", "second"):
        made = tmp_path / f".{name}"
        made.mkdir()
        (made / "inputs.json").write_text(json.dumps({"files": "", "by": name}))
        _put(made, tmp_path / "inputs", "")
    assert '"first"' in (tmp_path / "inputs" / "inputs.json").read_text()
    (tmp_path / "inputs" / "inputs.json").unlink()
    _put(tmp_path / ".second", tmp_path / "inputs", "")
    assert '"second"' in (tmp_path / "inputs" / "inputs.json").read_text()
