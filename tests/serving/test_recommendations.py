"""Histories from files and user ids; recommendations to files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from mmrec_jax.data.ragged import Ragged
from mmrec_jax.errors import ConfigError, DataError, UnknownItemError
from mmrec_jax.serving.recommendations import (
    catalogue_rows,
    read_histories,
    recommendations,
    user_histories,
    write_recommendations,
)

ROWS = {"a": 1, "b": 2, "7": 3}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_lists_and_objects_are_read_from_json_and_jsonl(tmp_path):
    entries = [["a", 7], {"user": "ann", "items": ["b"]}, {"items": ["a"]}]
    expected = {"0": ["a", "7"], "ann": ["b"], "2": ["a"]}
    assert read_histories(written(tmp_path / "h.json", json.dumps(entries))) == expected
    lines = "\n".join(map(json.dumps, entries)) + "\n\n"
    assert read_histories(written(tmp_path / "h.jsonl", lines)) == expected


def test_histories_are_read_from_parquet(tmp_path):
    path = tmp_path / "h.parquet"
    pl.DataFrame({"user": [4, 5], "items": [[1, 2], [3]], "other": [0, 0]}).write_parquet(path)
    assert read_histories(path) == {"4": ["1", "2"], "5": ["3"]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("h.json", "[", "h.json is not JSON"),
        ("h.json", "{}", "expected a list of histories, found dict"),
        ("h.json", "[]", "holds no history"),
        ("h.json", '[["a"], []]', "entry 1: a history is a list of at least one item id"),
        ("h.json", '[["a"], [null]]', r"entry 1: .* found \[null\]"),
        ("h.json", '[{"user": "ann"}]', "entry 0"),
        ("h.json", '["ab"]', 'entry 0: .* found "ab"'),
        ("h.jsonl", '["a"]\nb\n', "h.jsonl line 2 is not JSON"),
        ("h.json", '[{"user": 1, "items": ["a"]}, {"user": "1", "items": ["b"]}]', "several histories of 1"),
        ("h.parquet", "no table", "cannot be read as Parquet"),
    ],
)
def test_a_malformed_file_is_named_with_the_entry(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_histories(written(tmp_path / name, text))


def test_a_missing_file_or_column_or_an_unknown_ending_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no file of histories"):
        read_histories(tmp_path / "h.json")
    pl.DataFrame({"items": ["a"]}).write_parquet(tmp_path / "h.parquet")
    with pytest.raises(DataError, match="needs a column 'items' of lists"):
        read_histories(tmp_path / "h.parquet")
    with pytest.raises(ConfigError, match="are read from"):
        read_histories(written(tmp_path / "h.csv", "a"))


def test_item_ids_become_catalogue_rows_in_order():
    rows, skipped, left_out = catalogue_rows({"x": ["b", "a", "b"], "y": ["7"]}, ROWS, "error")
    assert [rows.rows(i).tolist() for i in range(2)] == [[2, 1, 2], [3]]
    assert (skipped, left_out) == (0, [])


def test_unknown_items_are_an_error_or_are_skipped_and_counted():
    histories = {"x": ["b", "?", "a"], "y": ["!", "7"]}
    with pytest.raises(UnknownItemError, match=r"2 items .*: \? \(history x\), ! \(history y\)"):
        catalogue_rows(histories, ROWS, "error")
    rows, skipped, left_out = catalogue_rows(histories, ROWS, "skip")
    assert [rows.rows(i).tolist() for i in range(2)] == [[2, 1], [3]]
    assert (skipped, left_out) == (2, [])


def test_a_history_of_unknown_items_only_is_left_out_and_named_when_skipping():
    rows, skipped, left_out = catalogue_rows({"x": ["a"], "y": ["?", "!"], "z": ["b", "?"]}, ROWS, "skip")
    assert [rows.rows(i).tolist() for i in range(2)] == [[1], [2]]
    assert (skipped, left_out) == (3, ["y"])
    with pytest.raises(UnknownItemError, match="no history holds an item of the catalogue: y"):
        catalogue_rows({"y": ["?", "!"]}, ROWS, "skip")


def test_empty_histories_and_wrong_policies_are_refused():
    with pytest.raises(DataError, match="1 empty histories: y"):
        catalogue_rows({"x": ["a"], "y": []}, ROWS, "skip")
    with pytest.raises(DataError, match="no history"):
        catalogue_rows({}, ROWS, "skip")
    with pytest.raises(ConfigError, match="choose error or skip"):
        catalogue_rows({"x": ["a"]}, ROWS, "ignore")


def test_known_users_bring_all_their_events():
    def part(*rows):
        return Ragged.of_lengths(np.concatenate(rows).astype(np.int32), np.array([len(row) for row in rows]))

    prepared = SimpleNamespace(
        user_ids=np.array(["u", "v"]),
        num_users=2,
        directory="prepared",
        train=part([1, 2], [3]),
        valid=part([4], []),
        test=part([5], [6]),
    )
    found = user_histories(prepared, ["v", "u"])
    assert [found.rows(i).tolist() for i in range(2)] == [[3, 6], [1, 2, 4, 5]]
    with pytest.raises(DataError, match="1 unknown users: w: prepared has 2 users"):
        user_histories(prepared, ["v", "w"])


def table() -> pl.DataFrame:
    return recommendations(
        ["ann", "1"],
        np.array([[2, 1], [3, 0]]),
        np.array([[0.5, 0.25], [1.5, -np.inf]], np.float32),
        item_ids=["", "a", "b", "7"],
        titles=["", "A", "B", "Seven"],
        weights={
            "text": np.array([0, 0.25, 0.5, 1], np.float32),
            "image": np.array([0, 0.75, 0.5, 0], np.float32),
        },
    )


def test_the_table_has_a_record_for_each_listed_item():
    assert table().rows() == [
        ("ann", 1, "b", "B", 0.5, 0.5, 0.5),
        ("ann", 2, "a", "A", 0.25, 0.25, 0.75),
        ("1", 1, "7", "Seven", 1.5, 1.0, 0.0),
    ]
    assert table().columns == ["query", "rank", "item", "title", "score", "weight_text", "weight_image"]


def test_recommendations_are_written_and_read_back(tmp_path):
    folder = tmp_path / "new"
    for name in ("r.parquet", "r.json", "r.jsonl"):
        write_recommendations(table(), folder / name)
    assert pl.read_parquet(folder / "r.parquet").equals(table())
    records = table().to_dicts()
    assert json.loads((folder / "r.json").read_text()) == records
    assert [json.loads(line) for line in (folder / "r.jsonl").read_text().splitlines()] == records
    assert sorted(path.name for path in folder.iterdir()) == ["r.json", "r.jsonl", "r.parquet"]


def test_an_unknown_ending_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"are written as \.parquet, \.json, \.jsonl"):
        write_recommendations(table(), tmp_path / "r.csv")
    assert not list(tmp_path.iterdir())
