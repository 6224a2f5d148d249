"""What a model in service knows of the stream, and versions that recommend with it."""

from __future__ import annotations

from datetime import date

import jax
import numpy as np
import polars as pl
import pytest

from mmrec_jax import experiment
from mmrec_jax.config import resolve, to_json
from mmrec_jax.errors import DataError
from mmrec_jax.modes import open_run
from mmrec_jax.modes.versions import publish, roll_back
from mmrec_jax.modes.workdir import keep_config
from mmrec_jax.serving import Recommender
from mmrec_jax.store import extract
from mmrec_jax.streaming import served
from mmrec_jax.streaming.served import Served
from tests.tiny_config import get_config


def events(*pairs: tuple[str, str]) -> pl.DataFrame:
    users, items = zip(*pairs, strict=True)
    return pl.DataFrame({"user": users, "item": items, "time": range(len(pairs))})


def items(*ids: str, **more) -> pl.DataFrame:
    return pl.DataFrame({"item": ids, "title": [f"the {item}" for item in ids], "about": ["x"] * len(ids)} | more)


def histories(state: Served) -> dict[str, list[str]]:
    ids = state.catalogue["item"].to_list()
    return {user: [ids[row - 1] for row in state.events.rows(n)] for n, user in enumerate(state.users.to_list())}


@pytest.fixture
def state() -> Served:
    """After two windows: u1 and u2, then u1 and u3."""
    first = Served.empty().after(1, events(("u1", "a"), ("u2", "b"), ("u1", "b")), items("a", "b"))
    return first.after(2, events(("u3", "c"), ("u1", "c"), ("u1", "a")), items("c", shelf=[7]))


def test_windows_add_users_items_and_events_in_order(state):
    assert histories(state) == {"u1": ["a", "b", "c", "a"], "u2": ["b"], "u3": ["c"]}
    assert state.catalogue["title"].to_list() == ["the a", "the b", "the c"]
    assert state.items == {"a", "b", "c"}


def test_what_was_not_seen_for_a_while_is_forgotten(state):
    assert histories(state.forgetting(2, 0)) == histories(state)
    assert histories(state.forgetting(1, 0)) == {"u1": ["a", "c", "a"], "u3": ["c"]}
    again = state.forgetting(1, 0).after(3, events(("u2", "b")), items("b"))
    assert histories(again) == {"u1": ["a", "c", "a"], "u3": ["c"], "u2": ["b"]}


def test_long_histories_are_cut_to_their_last_events(state):
    assert histories(state.forgetting(0, 2)) == {"u1": ["c", "a"], "u2": ["b"], "u3": ["c"]}


def test_the_state_is_read_as_it_was_written_and_old_ones_are_removed(state, tmp_path):
    assert served.read(tmp_path).window == 0
    for window in (3, 4, 5):
        state = state.after(window, events(("u4", "a")), items())
        state.write(tmp_path, "f", "title")
    found = served.read(tmp_path)
    assert histories(found) == histories(state)
    assert (found.window, found.seen.tolist()) == (5, state.seen.tolist())
    assert found.catalogue.equals(state.catalogue)
    assert sorted(path.name for path in (tmp_path / "served").iterdir()) == ["000004", "000005", "current"]


def test_a_kill_while_it_is_written_leaves_the_state_before(state, tmp_path, monkeypatch):
    state.write(tmp_path, "f", "title")
    later = state.after(3, events(("u4", "a")), items())
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            later.write(tmp_path, "f", "title")
    assert served.read(tmp_path).window == 2
    later.write(tmp_path, "f", "title")
    assert served.read(tmp_path).window == 3


@pytest.mark.parametrize(
    ("shelf", "held"),
    [([[7]], "lists, and numbers"), ([date(2024, 1, 1)], "dates, and numbers"), ([b"7"], "bytes, and numbers")],
)
def test_a_column_of_items_that_holds_something_else_is_refused(state, shelf, held):
    with pytest.raises(DataError, match=f"column 'shelf' of its items holds {held} in the windows before"):
        state.after(3, events(("u1", "d")), items("d", shelf=shelf))


@pytest.mark.parametrize(("shelf", "found"), [([None], None), ([7.5], 7.5), (["A7"], "A7")])
def test_a_column_of_items_may_lack_values_or_become_text(state, shelf, found):
    catalogue = state.after(3, events(("u1", "d")), items("d", shelf=shelf)).catalogue
    assert catalogue["shelf"].to_list() == [None, None, "7" if found == "A7" else 7, found]


def test_records_that_nobody_needs_are_not_looked_at(state):
    assert state.after(3, events(("u1", "a")), items("d", shelf=[[7]]).clear()).catalogue.columns == (
        state.catalogue.columns
    )


@pytest.fixture(scope="module")
def stream(shop, tmp_path_factory):
    """A workdir with two versions of untrained parameters over a catalogue of four items, and then a fifth."""
    workdir = tmp_path_factory.mktemp("stream") / "run"
    config = resolve(get_config(f"{shop},words"))
    keep_config(config, workdir)
    state, params = Served.empty(), None
    for window, ids in enumerate((("a", "b", "c", "d"), ("e",)), 1):
        described = items(*ids)
        extract(config.cached, described, shop, workdir / "store", config.extraction)
        state = state.after(window, events(*(("u1", item) for item in ids)), described)
        state.write(workdir, "f" * 64, "title")
        params = params or _params(config, workdir)
        publish(config, workdir, window, jax.tree.map(lambda leaf, by=window: leaf * by, params), "better")
    return workdir


def _params(config, workdir):
    """Fresh parameters of a config."""
    data = served.current(workdir)
    table = experiment.load_table(config, data, experiment.open_store(str(workdir / "store")))
    task = experiment.build_task(config, table, data.num_items + 1)
    return jax.tree.map(np.asarray, jax.jit(task.init)(jax.random.key(0), experiment.frozen_inputs(table, data)))


def test_every_version_recommends_from_the_catalogue_of_today(stream):
    lists = {
        version: Recommender.load(stream / "versions" / f"{version:04d}").recommend(
            users=["u1"], exclude_seen=False, k=5
        )
        for version in (1, 2)
    }
    assert [set(listed["item"]) for listed in lists.values()] == [set("abcde")] * 2
    assert lists[1]["score"].to_list() != lists[2]["score"].to_list()
    assert set(lists[1]["title"]) == {f"the {item}" for item in "abcde"}


def test_a_streams_workdir_stands_for_its_version_in_service_also_after_a_roll_back(stream, capsys):
    def listed():
        return Recommender.load(stream).recommend([["a"]], k=3)["score"].to_list()

    newest = listed()
    roll_back(str(stream), "previous")
    assert "Version 1 is in service (rolled back from version 2)" in capsys.readouterr().out
    oldest = Recommender.load(stream / "versions" / "0001").recommend([["a"]], k=3)["score"].to_list()
    assert listed() == oldest != newest


def test_a_version_keeps_its_links_when_the_workdir_is_moved(stream, tmp_path):
    moved = tmp_path / "moved"
    stream.rename(moved)
    try:
        assert len(Recommender.load(moved).recommend([["a"]], k=3)) == 3
    finally:
        moved.rename(stream)


def test_a_version_is_of_the_streams_config(stream, shop):
    kept, own = to_json(open_run(None, stream).config), to_json(resolve(get_config(f"{shop},words")))
    assert kept["data"].pop("source") == "stream:"
    own["data"].pop("source")
    assert kept == own | {"baselines": []}
