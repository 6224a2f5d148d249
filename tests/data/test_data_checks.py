"""What cannot be used is named with file and row, or skipped and counted."""

from __future__ import annotations

import pytest

from mmrec_jax.data import DataConfig, prepare
from mmrec_jax.errors import ConfigError, DataError

LOG = "user,item,timestamp\na,1,10\na,2,20\na,3,30\nb,1,10\nb,2,20\nb,3,30\n"
ITEMS = "item,title\n1,One\n2,Two\n3,Three\n"

FAULTS = {
    "unknown item": (LOG + "a,9,40\n", ITEMS, "interactions.csv: item is not in items.csv: row 8 (9)"),
    "item without id": (LOG + "a,,40\n", ITEMS, "interactions.csv: item id is missing: row 8"),
    "event without user": (LOG + ",1,40\n", ITEMS, "interactions.csv: user id is missing: row 8"),
    "unreadable time": (
        LOG + "a,1,yesterday\n",
        ITEMS,
        "interactions.csv: time is neither a number nor an ISO date: row 8 (yesterday)",
    ),
    "time that is not finite": (
        LOG + "a,1,inf\n",
        ITEMS,
        "interactions.csv: time is neither a number nor an ISO date: row 8 (inf)",
    ),
    "missing time": (LOG + "a,1,\n", ITEMS, "interactions.csv: time is missing: row 8"),
    "negative time": (LOG + "a,1,-5\n", ITEMS, "interactions.csv: time is negative: row 8 (-5)"),
    "too few fields": (LOG + "a,1\n", ITEMS, "interactions.csv: wrong number of fields: row 8"),
    "too many fields": (LOG + "a,1,40,x\n", ITEMS, "interactions.csv: wrong number of fields: row 8"),
    "the same event twice": (
        LOG + "a,2,20\n",
        ITEMS,
        "interactions.csv: repeats an earlier row (data.repeated_events='keep' allows it): row 8",
    ),
    "the same item twice": (
        LOG,
        ITEMS + "2,Two again\n",
        "items.csv: item id occurs in an earlier row: row 5 (2)",
    ),
    "catalogue row without id": (LOG, ITEMS + ",No id\n", "items.csv: item id is missing: row 5"),
    "row after an empty line and a malformed row": (
        LOG + "\na\na,9,40\n",
        ITEMS,
        "interactions.csv: item is not in items.csv: row 10 (9)",
    ),
    "row after a field of two lines": (
        'user,item,timestamp,note\na,1,1,"two\nlines"\na,9,2,\n',
        ITEMS,
        "interactions.csv: item is not in items.csv: row 3 (9)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_row_is_named_with_file_and_row(tables, tmp_path, fault):
    interactions, items, message = FAULTS[fault]
    with pytest.raises(DataError) as error:
        prepare(tables(interactions, items), tmp_path / "out")
    assert message in str(error.value)
    assert "data.on_bad_row='skip'" in str(error.value)


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"row after a field of two lines"}))
def test_a_skipped_bad_row_changes_nothing_but_the_count(tables, tmp_path, fault):
    interactions, items, message = FAULTS[fault]
    skipping = prepare(tables(interactions, items, on_bad_row="skip"), tmp_path / "out")
    clean = prepare(tables(LOG, ITEMS), tmp_path / "out")
    assert sum(skipping.report["skipped"].values()) == (2 if "malformed row" in fault else 1)
    kind = message.split(": row")[0]
    assert skipping.report["skipped"][kind] == 1
    for user in ("a", "b"):
        assert skipping.history(user).tolist() == clean.history(user).tolist()
    assert skipping.titles([1, 2, 3]) == ["One", "Two", "Three"]


def test_all_faults_of_both_files_are_told_together(tables, tmp_path):
    log = LOG + "a,9,40\na,1,-1\n" + "".join(f"b,{item},50\n" for item in range(20, 30))
    with pytest.raises(DataError) as error:
        prepare(tables(log, ITEMS + "1,Again\n"), tmp_path / "out")
    message = str(error.value)
    assert message.startswith("13 rows cannot be used")
    assert "row 8 (9), row 10 (20), row 11 (21), row 12 (22), row 13 (23), ... (11 in all)" in message
    assert "items.csv: item id occurs in an earlier row: row 5 (1)" in message
    assert "time is negative: row 9 (-1)" in message


@pytest.mark.parametrize(
    ("interactions", "items", "said", "settings"),
    [
        ("user,item\na,1\n", ITEMS, "no column 'timestamp' (it has: user, item): set data.timestamp_column", {}),
        ("who,item,timestamp\na,1,1\n", ITEMS, "set data.user_column", {}),
        (LOG, "id,title\n1,One\n", "items.csv has no column 'item' (it has: id, title)", {}),
        (LOG, ITEMS, "no column 'name' (it has: item, title): set data.title_column", {"title_column": "name"}),
        (LOG, "item,title,title\n1,a,b\n", "names the columns title more than once", {}),
        ("", ITEMS, "interactions.csv is empty", {}),
        ("user,item,timestamp\n", ITEMS, "interactions.csv holds no record below its header", {}),
        (LOG, "item,title\n", "items.csv holds no record below its header", {}),
        ("user,item,timestamp\n\n\n", ITEMS, "interactions.csv holds no record below its header", {}),
    ],
)
def test_a_file_that_lacks_a_column_or_records_is_an_error(tables, tmp_path, interactions, items, said, settings):
    with pytest.raises(DataError) as error:
        prepare(tables(interactions, items, **settings), tmp_path / "out")
    assert said in str(error.value)


def test_text_that_is_not_utf8_is_an_error_that_names_the_file(tables, tmp_path):
    config = tables(LOG, ITEMS)
    (tmp_path / "source" / "items.csv").write_bytes(b"item,title\n1,Caf\xe9\n")
    with pytest.raises(DataError, match=r"items\.csv cannot be read as .*UTF-?8"):
        prepare(config, tmp_path / "out")


def test_a_broken_parquet_file_is_an_error_that_names_the_file(tables, tmp_path):
    config = tables(LOG, ITEMS)
    (tmp_path / "source" / "items.csv").unlink()
    (tmp_path / "source" / "items.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(DataError, match=r"items\.parquet cannot be read as parquet"):
        prepare(config, tmp_path / "out")


def test_repeated_events_are_kept_where_the_config_says_so(tables, tmp_path):
    prepared = prepare(tables(LOG + "a,2,20\n", ITEMS, repeated_events="keep"), tmp_path / "out")
    assert prepared.history("a").tolist() == [1, 2, 2, 3]


def test_nothing_left_after_the_filters_is_an_error_with_the_counts(tables, tmp_path):
    with pytest.raises(DataError, match=r"nothing is left of .*checked: 6 interactions; core of 9 .*: 0 inter"):
        prepare(tables(LOG, ITEMS, user_core=9), tmp_path / "out")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"source": ""}, "data.source is empty"),
        ({"layout": "excel"}, "data.layout is 'excel'; it must be one of auto, tables"),
        ({"on_bad_row": "ignore"}, "data.on_bad_row"),
        ({"split": "random"}, "data.split"),
        ({"candidates": "all"}, "data.candidates"),
        ({"user_core": -1}, "data.user_core"),
        ({"max_length": 2}, "leaves no training event"),
        ({"split": "temporal", "valid_fraction": 0.5, "test_fraction": 0.5}, "sum to less than 1"),
        ({"split": "temporal", "test_fraction": 0.0}, "between 0 and 1"),
    ],
)
def test_an_impossible_setting_is_refused_at_once(setting, said):
    with pytest.raises(ConfigError) as error:
        DataConfig(**setting)
    assert said in str(error.value)
