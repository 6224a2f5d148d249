"""Each layout of a source gives the same kind of prepared data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from mmrec_jax.data import DataConfig, prepare
from mmrec_jax.errors import ConfigError, DataError

HISTORIES = {"u1": ["10", "30", "20"], "u2": ["20", "10", "30", "10"]}
TITLES = {"10": "Ten", "20": "Twenty", "30": "Thirty"}
EVENTS = [
    (user, item, 1000 + 10 * place + (user == "u2"))
    for user, items in HISTORIES.items()
    for place, item in enumerate(items)
]


def frames() -> tuple[pl.DataFrame, pl.DataFrame]:
    log = pl.DataFrame(EVENTS, schema=["user", "item", "timestamp"], orient="row")
    return log, pl.DataFrame({"item": list(TITLES), "title": list(TITLES.values())})


def write(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir()
    for name, text in files.items():
        (directory / name).write_text(text, encoding="utf-8")
    return directory


def check(config: DataConfig, out: Path) -> None:
    """The prepared data hold exactly the known histories and titles."""
    prepared = prepare(config, out)
    assert prepared.user_ids.tolist() == list(HISTORIES)
    for user, items in HISTORIES.items():
        assert [str(prepared.item_ids[row]) for row in prepared.history(user)] == items
    assert dict(zip(prepared.item_ids[1:].tolist(), prepared.titles([1, 2, 3]), strict=True)) == TITLES


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_tables_are_read_in_every_format_whatever_the_order_of_their_rows(tmp_path, suffix):
    source = tmp_path / "source"
    source.mkdir()
    for frame, name in zip(frames(), ("interactions", "items"), strict=True):
        if name == "interactions":
            # u1 stays first: users are numbered by first appearance.
            frame = pl.concat([frame[:1], frame[1:].sample(fraction=1.0, shuffle=True, seed=1)])
        path = source / f"{name}.{suffix}"
        if suffix == "parquet":
            frame.write_parquet(path)
        else:
            frame.write_csv(path, separator="," if suffix == "csv" else "\t")
    check(DataConfig(source=str(source), user_core=0), tmp_path / "out")


@pytest.mark.parametrize("log_type", [pl.Int32, pl.Float64, pl.String, pl.Categorical])
@pytest.mark.parametrize("catalogue_type", [pl.Int64, pl.Float32, pl.String])
def test_ids_of_different_types_are_the_same_ids(tmp_path, log_type, catalogue_type):
    source = tmp_path / "source"
    source.mkdir()
    log, items = frames()

    def retyped(frame: pl.DataFrame, dtype) -> pl.DataFrame:
        strings = dtype in (pl.String, pl.Categorical)
        column = pl.col("item") if strings else pl.col("item").cast(pl.Int64)
        return frame.with_columns(column.cast(dtype))

    retyped(log, log_type).write_parquet(source / "interactions.parquet")
    retyped(items, catalogue_type).write_parquet(source / "items.parquet")
    check(DataConfig(source=str(source), user_core=0), tmp_path / "out")


def test_column_and_file_names_come_from_the_config(tmp_path):
    log, items = frames()
    source = tmp_path / "source"
    source.mkdir()
    log.rename({"user": "who", "item": "what", "timestamp": "when"}).write_csv(source / "clicks.csv")
    items.rename({"item": "sku", "title": "label"}).write_csv(source / "shop.tsv", separator="\t")
    config = DataConfig(
        source=str(source),
        layout="tables",
        interactions_file="clicks.csv",
        items_file="shop.tsv",
        user_column="who",
        item_column="what",
        timestamp_column="when",
        catalogue_item_column="sku",
        title_column="label",
        user_core=0,
    )
    check(config, tmp_path / "out")


@pytest.mark.parametrize("items_file", ["items.csv", "movies.csv"])
def test_movielens_files_are_read(tmp_path, items_file):
    ratings = "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},4.0,{t}\n" for u, i, t in EVENTS)
    movies = "movieId,title,genres\n" + "".join(f"{i},{title},Drama\n" for i, title in TITLES.items())
    source = write(tmp_path / "source", {"ratings.csv": ratings, items_file: movies, "tags.csv": "x"})
    check(DataConfig(source=str(source), user_core=0), tmp_path / "out")


def test_another_ratings_file_can_be_named(tmp_path):
    ratings = "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},4.0,{t}\n" for u, i, t in EVENTS)
    movies = "movieId,title\n" + "".join(f"{i},{title}\n" for i, title in TITLES.items())
    source = write(tmp_path / "source", {"ratings.csv": "x\n", "ratings_5core.csv": ratings, "items.csv": movies})
    check(DataConfig(source=str(source), interactions_file="ratings_5core.csv", user_core=0), tmp_path / "out")


def test_sequences_are_read_and_entities_in_their_titles_unescaped(tmp_path):
    users = "".join(f"{user}\t{' '.join(items)}\n" for user, items in HISTORIES.items())
    titles = TITLES | {"10": 'Wash &amp; Dry &#39;6"&#x27; &eacute; &amp;lt; R&D; &nosuch; "'}
    items = "".join(f"{item}\t{title}\n" for item, title in titles.items())
    source = write(tmp_path / "source", {"users.tsv": users, "items.tsv": items})
    prepared = prepare(DataConfig(source=str(source), user_core=0), tmp_path / "out")
    assert prepared.history("u2").tolist() == [2, 1, 3, 1]
    assert prepared.titles([1]) == ["Wash & Dry '6\"' é &lt; R&D; &nosuch; \""]
    assert prepared.catalogue["title"][0] == prepared.titles([1])[0]


def test_sequences_name_repeated_users_empty_histories_and_unknown_items(tmp_path):
    users = "u1\t10 20 30\nu2\t \nu1\t30 20 10\nu3\t10  99 20 30\n"
    items = "".join(f"{item}\t{title}\n" for item, title in TITLES.items())
    source = write(tmp_path / "source", {"users.tsv": users, "items.tsv": items})
    with pytest.raises(DataError) as error:
        prepare(DataConfig(source=str(source), user_core=0), tmp_path / "out")
    for said in (
        "user occurs in an earlier row: row 3 (u1)",
        "history is empty: row 2",
        "item is not in items.tsv: row 4 (99)",
    ):
        assert f"users.tsv: {said}" in str(error.value)
    prepared = prepare(DataConfig(source=str(source), user_core=0, on_bad_row="skip"), tmp_path / "out")
    assert prepared.user_ids.tolist() == ["u1", "u3"]
    assert prepared.history("u3").tolist() == [1, 2, 3]


def test_a_temporal_split_of_sequences_is_refused(tmp_path):
    users = "".join(f"{user}\t{' '.join(items)}\n" for user, items in HISTORIES.items())
    items = "".join(f"{item}\t{title}\n" for item, title in TITLES.items())
    source = write(tmp_path / "source", {"users.tsv": users, "items.tsv": items})
    with pytest.raises(ConfigError, match=r"needs times, and this source only gives the order"):
        prepare(DataConfig(source=str(source), user_core=0, split="temporal"), tmp_path / "out")


def test_recbole_atomic_files_are_read(tmp_path):
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    inter += "".join(f"{u}\t{i}\t5\t{t}.0\n" for u, i, t in EVENTS)
    item = "item_id:token\tmovie_title:token_seq\n" + "".join(f"{i}\t{t}\n" for i, t in TITLES.items())
    source = write(tmp_path / "source", {"ml.inter": inter, "ml.item": item})
    check(DataConfig(source=str(source), title_column="movie_title", user_core=0), tmp_path / "out")


def test_a_recbole_log_without_item_file_is_its_own_catalogue(tmp_path):
    inter = "user_id:token\titem_id:token\ttimestamp:float\n"
    inter += "".join(f"{u}\t{i}\t{t}\n" for u, i, t in EVENTS)
    prepared = prepare(
        DataConfig(source=str(write(tmp_path / "source", {"ml.inter": inter})), user_core=0), tmp_path / "out"
    )
    assert prepared.titles([0, 1, 2, 3]) == ["", "10", "30", "20"]


@pytest.mark.parametrize("header", ["user_id\titem_id\ttimestamp", "user_id:token\titem_id:id\ttimestamp:float"])
def test_an_untyped_atomic_header_is_an_error(tmp_path, header):
    source = write(tmp_path / "source", {"ml.inter": f"{header}\na\t1\t1\n"})
    with pytest.raises(DataError, match="must be `name:type`"):
        prepare(DataConfig(source=str(source)), tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["readme.txt"], "fits none of the known layouts"),
        (["users.tsv", "items.tsv", "ratings.csv"], "looks like movielens and sequences"),
        (["interactions.csv"], "has no items file"),
        (
            ["interactions.csv", "interactions.tsv", "items.csv"],
            "interactions.csv and interactions.tsv: choose one",
        ),
        (["ratings.csv"], "has no items or movies file"),
        (["a.inter", "b.inter"], "has a.inter, b.inter"),
    ],
)
def test_a_directory_that_cannot_be_told_says_what_is_expected(tmp_path, files, said):
    source = write(tmp_path / "source", dict.fromkeys(files, "a\tb\n"))
    with pytest.raises((ConfigError, DataError)) as error:
        prepare(DataConfig(source=str(source)), tmp_path / "out")
    assert said in str(error.value)


def test_unknown_sources_are_named(tmp_path):
    with pytest.raises(DataError, match="is not a directory"):
        prepare(DataConfig(source=str(tmp_path / "nowhere")), tmp_path / "out")
    with pytest.raises(ConfigError, match="is no sample of this package"):
        prepare(DataConfig(source="sample:nothing"), tmp_path / "out")


@pytest.mark.parametrize(
    ("times", "order"),
    [
        (["3", "1", "2"], [2, 3, 1]),
        (["3.5", "0.25", "1e3"], [2, 1, 3]),
        (["2024-02-01", "2024-01-31T23:59:59.5", "2024-01-31 23:59:59Z"], [3, 2, 1]),
        (["2024-01-01 10:00:00+00:00", "2024-01-01T10:00:00+02:00", "2024-01-01 10:00:00-0130"], [2, 1, 3]),
        (["2024-01-01 10:00:00.5 UTC", "2024-01-01T10:00:00Z", "2024-01-01 10:00:00.25"], [2, 3, 1]),
        (["2024-01-01 10:00:01+00", "2024-01-01 10:00+01", "2024-01-01"], [3, 2, 1]),
        (["1700000000000000001", "1700000000000000002", "1700000000000000000"], [3, 1, 2]),
    ],
)
def test_times_may_be_numbers_of_any_unit_or_iso_dates(tables, tmp_path, times, order):
    log = "user,item,timestamp\n" + "".join(f"a,{i + 1},{time}\n" for i, time in enumerate(times))
    prepared = prepare(tables(log, "item,title\n1,a\n2,b\n3,c\n"), tmp_path / "out")
    assert prepared.history("a").tolist() == order


def test_a_skipped_time_leaves_the_others_exact(tables, tmp_path):
    # Two nanoseconds since 1970 that are the same number in float64.
    log = "user,item,timestamp\na,1,1700000000000000002\na,2,1700000000000000001\na,3,inf\na,3,1.5x\na,3,\n"
    prepared = prepare(tables(log, "item,title\n1,a\n2,b\n3,c\n", on_bad_row="skip"), tmp_path / "out")
    assert prepared.titles(prepared.history("a")) == ["b", "a"]
    assert sum(prepared.report["skipped"].values()) == 3


def test_a_missing_id_in_a_column_of_floats_is_missing(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    log, items = frames()
    ids = [float(item) for item in log["item"][:-1]] + [float("nan")]
    log.with_columns(pl.Series("item", ids)).write_parquet(source / "interactions.parquet")
    items.write_parquet(source / "items.parquet")
    with pytest.raises(DataError, match="item id is missing: row 7"):
        prepare(DataConfig(source=str(source), user_core=0), tmp_path / "out")


def test_typed_dates_in_parquet_are_times(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    log, items = frames()
    log.with_columns(pl.from_epoch("timestamp", time_unit="s")).write_parquet(source / "interactions.parquet")
    items.write_parquet(source / "items.parquet")
    check(DataConfig(source=str(source), user_core=0), tmp_path / "out")


@pytest.mark.parametrize(
    "typed",
    [
        pl.from_epoch("timestamp", time_unit="s").dt.replace_time_zone("Europe/Berlin"),
        pl.from_epoch("timestamp", time_unit="s").cast(pl.String).cast(pl.Categorical),
        pl.col("timestamp").cast(pl.Decimal(18, 0)),
        pl.col("timestamp").cast(pl.Decimal(18, 3)) + pl.lit("0.125").cast(pl.Decimal(18, 3)),
    ],
    ids=["zoned", "categories", "decimal", "decimal fractions"],
)
def test_times_of_further_parquet_types(tmp_path, typed):
    source = tmp_path / "source"
    source.mkdir()
    log, items = frames()
    log.with_columns(typed.alias("timestamp")).write_parquet(source / "interactions.parquet")
    items.write_parquet(source / "items.parquet")
    check(DataConfig(source=str(source), user_core=0), tmp_path / "out")


def test_bytes_are_referred_to_from_the_source_wherever_its_files_lie(tmp_path):
    source = tmp_path / "source"
    log, items = frames()
    for folder in ("logs", "lists"):
        (source / folder).mkdir(parents=True)
    log.write_csv(source / "logs" / "i.csv")
    items.with_columns(picture=pl.lit(b"...")).write_parquet(source / "lists" / "items.parquet")
    config = DataConfig(
        source=str(source), user_core=0, interactions_file="logs/i.csv", items_file="lists/items.parquet"
    )
    check(config, tmp_path / "out")
    assert prepare(config, tmp_path / "out").catalogue["picture"][1] == "lists/items.parquet#picture:1"
    (source / "lists" / "items.parquet").rename(tmp_path / "items.parquet")
    with pytest.raises(DataError, match=r"read from below data\.source"):
        prepare(dataclasses.replace(config, items_file=str(tmp_path / "items.parquet")), tmp_path / "out")


def test_ratings_may_be_categories(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    log, items = frames()
    ratings = pl.Series("rating", ["5", "4", "3"] + ["5"] * 4, dtype=pl.Categorical)
    log.with_columns(ratings).write_parquet(source / "interactions.parquet")
    items.write_parquet(source / "items.parquet")
    prepared = prepare(DataConfig(source=str(source), user_core=0, min_rating=4), tmp_path / "out")
    assert prepared.titles(prepared.history("u1")) == ["Ten", "Thirty"]


def test_a_catalogue_with_two_candidates_for_the_item_column_is_an_error(tables, tmp_path):
    config = tables("user,item,timestamp\na,1,1\n", "sku,item\n1,x\n", catalogue_item_column="sku")
    with pytest.raises(DataError, match="has a column 'item' beside its id column 'sku'"):
        prepare(config, tmp_path / "out")


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(tables, tmp_path):
    config = tables("", "item,title\r\n1,One\r\n2,Two\r\n3,Three\r\n")
    log = "user,item,timestamp\r\na,1,1\r\na,3,2\r\na,2,3\r\n"
    (tmp_path / "source" / "interactions.csv").write_bytes(b"\xef\xbb\xbf" + log.encode())
    prepared = prepare(config, tmp_path / "out")
    assert prepared.titles(prepared.history("a")) == ["One", "Three", "Two"]
    for name, text in {"users.tsv": "a\t1 3 2\r\n", "items.tsv": "1\tOne\r\n2\tTwo\r\n3\tThree\r\n"}.items():
        (tmp_path / "source" / name).write_bytes(text.encode())
    prepared = prepare(dataclasses.replace(config, layout="sequences"), tmp_path / "out")
    assert prepared.titles(prepared.history("a")) == ["One", "Three", "Two"]


def test_rows_are_numbered_through_in_files_of_several_megabytes(tables, tmp_path):
    rows = [f"user {i % 1000},1,{i}" for i in range(100_000)]
    rows[90_000] = "too,few"
    rows[99_000] = "unknown,77,5"
    with pytest.raises(DataError) as error:
        prepare(tables("user,item,timestamp\n" + "\n".join(rows), "item,title\n1,One\n"), tmp_path / "out")
    assert "wrong number of fields: row 90002\n" in str(error.value)
    assert "item is not in items.csv: row 99002 (77)" in str(error.value)


def test_a_history_longer_than_a_megabyte_is_read(tmp_path):
    source = write(
        tmp_path / "source",
        {"users.tsv": f"a\t{'item ' * 300_000}item\nb\titem item item\n", "items.tsv": "item\tThe item\n"},
    )
    prepared = prepare(DataConfig(source=str(source), user_core=0), tmp_path / "out")
    assert len(prepared.history("a")) == 300_001
    assert len(prepared.history("b")) == 3
