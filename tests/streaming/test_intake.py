"""Windows that are taken in, and every kind of window that cannot be."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest

from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig
from mmrec_jax.data.config import DataConfig
from mmrec_jax.errors import ConfigError, StoreError
from mmrec_jax.store import HiddenStateStore
from mmrec_jax.streaming.arrivals import Arrival, BadWindow, digest
from mmrec_jax.streaming.intake import Intake
from tests.tiny_dataset import write_picture


@pytest.fixture(scope="module")
def modalities(shop) -> dict[str, ModalityConfig]:
    return {
        "words": ModalityConfig(backbone=str(shop / "bert"), template="{title}. {about}", layers=(0, 2), max_tokens=16),
        "picture": ModalityConfig(kind="image", backbone=str(shop / "vit"), column="picture", layers=(0,)),
    }


@pytest.fixture
def texts(modalities, tmp_path) -> Intake:
    """An intake of items with a text only."""
    return Intake(DataConfig(), {"words": modalities["words"]}, ExtractionConfig(), str(tmp_path / "store"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "watched").mkdir()
    return tmp_path / "watched"


def events(*triples, **more) -> pl.DataFrame:
    users, items, times = zip(*triples, strict=True)
    return pl.DataFrame({"user": users, "item": items, "timestamp": times, **more})


def items(*ids: str, **more) -> pl.DataFrame:
    plain = {"title": [f"lamp {item}" for item in ids], "about": ["red"] * len(ids)}
    return pl.DataFrame({"item": list(ids), **(plain | more)})


FIRST = events(("u1", "a", 1), ("u2", "b", 2), ("u1", "b", 3))


def window(folder, frame: pl.DataFrame, described: pl.DataFrame | None = None, name: str = "w1") -> Arrival:
    path, beside = folder / f"{name}.csv", folder / f"{name}.items.csv"
    frame.write_csv(path)
    if described is not None:
        described.write_csv(beside)
    return Arrival(name, path, beside if described is not None else None, digest(path))


def first_of(intake: Intake, folder):
    """The entry of a sound first window with items a and b."""
    return intake.read(window(folder, FIRST, items("a", "b"), "w0"), [], [], [])[0]


def next_of(intake: Intake, folder, frame: pl.DataFrame, described=None, known=("a", "b"), users=("u1", "u2")):
    entry = first_of(intake, folder)
    return intake.read(window(folder, frame, described), [entry], known, users)


def test_a_window_is_read_in_order_of_time_and_its_new_items_are_encoded(texts, folder):
    frame = events(("u1", "b", 9), ("u3", "c", 4), ("u1", "c", 7))
    entry, read, new = next_of(texts, folder, frame, items("c"))
    assert read.rows() == [("u3", "c", 4), ("u1", "c", 7), ("u1", "b", 9)]
    assert new["item"].to_list() == ["c"]
    assert (entry.number, entry.events, entry.users, entry.items, entry.new_items) == (2, 3, 2, 2, 1)
    assert (entry.first, entry.last, entry.notes) == (4, 9, ())
    store = HiddenStateStore.open(texts.store)
    assert store.item_ids == ["a", "b", "c"]
    assert store.complete("words")


def test_an_item_is_encoded_as_it_would_be_with_all_others(texts, folder, tmp_path):
    """The same states whichever window an item comes with."""
    next_of(texts, folder, events(("u1", "c", 9)), items("c"))
    at_once = dataclasses.replace(texts, store=str(tmp_path / "at_once"))
    at_once.read(window(folder, events(("u1", "c", 9), ("u1", "a", 9)), items("a", "c"), "all"), [], [], [])
    tables = [
        HiddenStateStore.open(store).table({"words": (0, 2)}, ["c", "a"]).values["words"]
        for store in (texts.store, at_once.store)
    ]
    for one, other in zip(*tables, strict=True):
        # Texts in batches of other lengths are padded otherwise: the sums have another order.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_items_may_be_described_in_the_events_themselves(texts, folder):
    frame = events(("u1", "a", 1), ("u1", "b", 2), ("u2", "a", 3), title=["x", "y", "z"], about=["p", "q", "r"])
    _, read, new = texts.read(window(folder, frame), [], [], [])
    assert read.columns == ["user", "item", "time"]
    assert new.rows() == [("a", "x", "p"), ("b", "y", "q")]


def test_an_item_that_is_known_already_keeps_its_first_description(texts, folder):
    _, _, new = next_of(texts, folder, events(("u1", "a", 9)), items("a", title=["other"]))
    assert not len(new)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FIRST.clear(), "holds no record"),
        (events(("u1", "a", 2), ("u1", "b", 5)), r"out of order: 1 of its 2 events are earlier than the end of"),
        (FIRST.rename({"item": "article"}), r"other columns than window w0: without item; with the new article"),
        (FIRST.drop("timestamp"), "other columns than window w0: without timestamp"),
        (
            events(("u1", "a", "2024-01-01"), ("u1", "b", "2024-01-02")),
            "has dates in its column 'timestamp', and window w0 has numbers",
        ),
        (events(("u1", "a", 4), ("", "b", 5)), r"w1.csv: user id is missing: row 3"),
        (events(("u1", "a", 4), ("u1", "b", -5)), r"w1.csv: time is negative: row 3"),
    ],
)
def test_a_window_that_cannot_be_used_is_refused_with_the_reason(texts, folder, frame, message):
    with pytest.raises(BadWindow, match=message) as error:
        next_of(texts, folder, frame)
    assert str(error.value).startswith("Window w1: ")
    assert error.value.digest == digest(folder / "w1.csv")


def test_the_same_window_under_another_name_is_refused(texts, folder):
    entry = first_of(texts, folder)
    again = Arrival("w1", folder / "w0.csv", None, entry.digest)
    with pytest.raises(BadWindow, match="is window w0 once more"):
        texts.read(again, [entry], ["a", "b"], [])


def test_a_window_of_new_users_only_is_taken_in_and_said_so(texts, folder):
    entry, read, _ = next_of(texts, folder, events(("u8", "a", 4), ("u9", "b", 5)))
    assert entry.notes == ("all 2 users are new: it is learned from as any other window",)
    assert len(read) == 2


def test_a_column_more_is_said_and_harmless(texts, folder):
    entry, _, _ = next_of(texts, folder, events(("u1", "a", 4), shelf=["7"]))
    assert entry.notes == ("other columns than window w0: with the new shelf",)


@pytest.mark.parametrize("described", [None, items("c", "d", title=["", ""], about=["", ""])])
def test_items_without_any_medium_stop_the_stream_or_are_left_out(texts, folder, described):
    frame = events(("u1", "a", 4), ("u1", "c", 5), ("u2", "d", 6))
    with pytest.raises(BadWindow, match="2 items have no medium of words: c, d"):
        next_of(texts, folder, frame, described)
    entry, read, new = next_of(dataclasses.replace(texts, skip=True), folder, frame, described)
    assert read["item"].to_list() == ["a"]
    assert not len(new)
    assert entry.notes == ("2 items have no medium of words: c, d; their events are left out",)


def test_an_item_that_was_left_out_is_taken_when_it_comes_with_a_medium(texts, folder):
    skipping = dataclasses.replace(texts, skip=True)
    frame = events(("u1", "a", 4), ("u1", "c", 5))
    next_of(skipping, folder, frame, items("c", title=[""], about=[""]))
    _, read, new = next_of(skipping, folder, frame, items("c"))
    assert read["item"].to_list() == ["a", "c"]
    assert new["item"].to_list() == ["c"]


def test_rows_that_cannot_be_used_are_left_out_where_the_stream_goes_on(texts, folder):
    frame = events(("u1", "a", 4), ("", "b", 5))
    entry, read, _ = next_of(dataclasses.replace(texts, skip=True), folder, frame)
    assert len(read) == 1
    assert entry.notes == ("1 rows left out: w1.csv: user id is missing",)


def test_an_item_may_lack_one_of_several_modalities_which_is_counted(modalities, folder, tmp_path):
    intake = Intake(DataConfig(), modalities, ExtractionConfig(decode_threads=1), str(tmp_path / "store"))
    write_picture(folder / "a.png", 1)
    described = items("a", "b", "c", picture=["a.png", "", "broken.png"])
    frame = events(("u1", "a", 1), ("u1", "b", 2), ("u1", "c", 3), ("u2", "a", 4), ("u2", "a", 5))
    entry, read, _ = intake.read(window(folder, frame, described), [], [], [])
    assert len(read) == 5
    assert entry.missing == {"words": 0, "picture": pytest.approx(2 / 5)}


def test_states_that_are_not_finite_are_the_windows_fault_and_a_full_disk_is_not(texts, folder, monkeypatch):
    write = HiddenStateStore.write

    def broken(self, name, rows, states, *rest):
        write(self, name, rows, states * np.nan, *rest)

    def full(self, name, rows, states, *rest):
        raise StoreError("no space left")

    monkeypatch.setattr(HiddenStateStore, "write", broken)
    with pytest.raises(BadWindow, match=r"not finite .* for 2 items: a, b"):
        first_of(texts, folder)
    monkeypatch.setattr(HiddenStateStore, "write", full)
    with pytest.raises(StoreError, match="no space left"):
        first_of(texts, folder)


@pytest.fixture
def own(texts, tmp_path) -> Intake:
    """Of a store that is the run's own."""
    return dataclasses.replace(texts, attempt=tmp_path / "journal" / "encoding")


def stored(intake: Intake, *ids: str) -> np.ndarray:
    return np.asarray(HiddenStateStore.open(intake.store).table({"words": (0, 2)}, ids).values["words"])


def test_items_of_a_refused_window_are_encoded_anew_when_they_come_mended(own, folder, tmp_path):
    frame = events(("u1", "c", 4), ("u1", "d", 5))
    with pytest.raises(BadWindow, match="have no medium of words: d"):
        next_of(own, folder, frame, items("c", title=["lamb"]))
    own.end_attempt()
    own.read(window(folder, frame, items("c", "d")), [], [], [])
    fresh = dataclasses.replace(own, store=str(tmp_path / "fresh"), attempt=tmp_path / "other")
    fresh.read(window(folder, frame, items("c", "d")), [], [], [])
    np.testing.assert_array_equal(stored(own, "c", "d"), stored(fresh, "c", "d"))


def test_a_forgotten_item_is_encoded_as_it_is_described_again(own, folder):
    first_of(own, folder)
    before = stored(own, "a", "b")
    own.read(window(folder, events(("u1", "a", 9)), items("a", title=["sofa"])), [], ["b"], [])
    after = stored(own, "a", "b")
    assert (before[:, 1] != after[:, 1]).any()
    np.testing.assert_array_equal(before[:, 2], after[:, 2])


def test_a_window_whose_encoding_was_killed_is_gone_on_with(own, folder, monkeypatch):
    first_of(own, folder)
    monkeypatch.setattr(HiddenStateStore, "write", lambda *_: pytest.fail("encoded again"))
    first_of(own, folder)


def test_what_a_store_of_others_holds_is_used_where_it_is_of_the_same_text(texts, folder):
    first_of(texts, folder)
    before = stored(texts, "a", "b")
    title = [items("a", "b")["title"][0], "bed"]
    texts.read(window(folder, FIRST, items("a", "b", title=title)), [], [], [])
    after = stored(texts, "a", "b")
    np.testing.assert_array_equal(before[:, 1], after[:, 1])
    assert (before[:, 2] != after[:, 2]).any()


def test_systems_and_layouts_that_no_stream_can_have_are_refused(texts):
    with pytest.raises(ConfigError, match="knows nothing of new items"):
        dataclasses.replace(texts, modalities={})
    with pytest.raises(ConfigError, match=r"data.layout='recbole'"):
        dataclasses.replace(texts, data=DataConfig(layout="recbole"))
