"""`--mode=recommend`: lists for users and for histories, as files."""

from __future__ import annotations

import json

import polars as pl
import pytest

from tests.tiny_dataset import ITEMS, NO_PICTURE
from tests.tiny_run import arguments


@pytest.fixture
def recommend(trained, cli):
    """Calls the mode on the finished run, without a config."""

    def run(*flags):
        return cli(["mmrec_jax", "--mode=recommend", f"--workdir={trained}", *flags])

    return run


def test_lists_for_users_are_written_as_parquet(recommend, tmp_path):
    code, out, _ = recommend("--users=u03,u01", "--k=4", f"--out={tmp_path / 'lists.parquet'}")
    assert code == 0
    assert "2 lists of up to 4 items" in out
    listed = pl.read_parquet(tmp_path / "lists.parquet")
    assert listed["query"].to_list() == ["u03"] * 4 + ["u01"] * 4
    assert set(listed.columns) == {"query", "rank", "item", "title", "score", "weight_picture", "weight_words"}


def test_lists_for_histories_are_written_as_json(recommend, tmp_path):
    histories = tmp_path / "histories.json"
    histories.write_text(json.dumps([{"user": "ann", "items": ["i01", "i02"]}, {"user": "bob", "items": ["i09"]}]))
    code, _, _ = recommend(f"--histories={histories}", f"--k={ITEMS}", f"--out={tmp_path / 'new' / 'lists.json'}")
    assert code == 0
    records = json.loads((tmp_path / "new" / "lists.json").read_text())
    assert [record["item"] for record in records if record["query"] == "bob"].count("i09") == 0
    assert len(records) == 2 * ITEMS - 3
    without = [record for record in records if record["item"] == NO_PICTURE]
    assert [record["weight_picture"] for record in without] == [0.0, 0.0]
    assert [record["weight_words"] for record in without] == [1.0, 1.0]
    assert {"title", "score", "rank"} <= records[0].keys()


def test_what_was_seen_may_be_listed(recommend, tmp_path):
    out = tmp_path / "lists.jsonl"
    code, _, _ = recommend("--users=u00", f"--k={ITEMS}", "--noexclude_seen", f"--out={out}")
    assert code == 0
    assert len(out.read_text().splitlines()) == ITEMS


def test_unknown_items_are_an_error_unless_the_config_skips_them(recommend, trained, shop, tmp_path, cli):
    histories = tmp_path / "histories.json"
    histories.write_text(json.dumps([["i01", "i99"], ["i02"]]))
    flags = ("--mode=recommend", f"--histories={histories}", f"--out={tmp_path / 'lists.json'}")
    code, _, err = recommend(*flags)
    assert code == 2
    assert "1 items are not in the catalogue: i99 (history 0)" in err
    code, out, _ = cli(arguments(shop, trained, *flags, "--config.on_unknown_item=skip"))
    assert code == 0
    assert "1 items of the histories are not in the catalogue" in " ".join(out.split())
    assert len(json.loads((tmp_path / "lists.json").read_text())) == 20


def test_a_history_of_unknown_items_only_has_no_list_and_is_named(trained, shop, tmp_path, cli):
    histories, out = tmp_path / "histories.json", tmp_path / "lists.json"
    histories.write_text(json.dumps([{"user": "ann", "items": ["i01"]}, {"user": "bob", "items": ["i99"]}]))
    flags = ("--mode=recommend", f"--histories={histories}", f"--out={out}", "--config.on_unknown_item=skip")
    code, printed, _ = cli(arguments(shop, trained, *flags))
    assert code == 0
    assert "1 histories hold no item of the catalogue and have no list: bob" in " ".join(printed.split())
    assert {record["query"] for record in json.loads(out.read_text())} == {"ann"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs either --users=ID,ID,... or --histories=FILE"),
        (["--users=u01", "--histories=h.json"], "needs either --users"),
        (["--users=u01,nobody"], "1 unknown users: nobody"),
        (["--users=u01", "--k=31"], "k = 31 is larger than the catalogue of 30 items: choose k <= 30"),
        (["--users=u01", "--out=lists.csv"], "written as .parquet, .json, .jsonl"),
        (["--histories=gone.json"], "no file of histories at gone.json"),
    ],
)
def test_what_cannot_be_recommended_is_one_message(recommend, flags, message):
    code, _, err = recommend(*flags)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_workdir_without_a_run_or_without_a_checkpoint_is_refused(cli, shop, tmp_path):
    code, _, err = cli(["mmrec_jax", "--mode=recommend", "--users=u01", f"--workdir={tmp_path / 'nowhere'}"])
    assert (code, "is no workdir of a run" in err) == (2, True)
    code, _, err = cli(arguments(shop, tmp_path / "new", "--mode=recommend", "--users=u01"))
    assert (code, "holds no checkpoint: train first" in err) == (2, True)
    assert not (tmp_path / "nowhere").exists()
