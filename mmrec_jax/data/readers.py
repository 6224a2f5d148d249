"""From the files of a source to a checked log and catalogue."""

from __future__ import annotations

import html
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from jaxtyping import Bool, Int, Int32, Num

from mmrec_jax.data import log as logs
from mmrec_jax.data.checks import (
    BadRows,
    Ids,
    catalogue_rows,
    check_catalogue,
    encode_ids,
    parse_numbers,
    parse_times,
    some_values,
)
from mmrec_jax.data.config import DataConfig
from mmrec_jax.data.files import Table, read_items, read_table, read_text
from mmrec_jax.data.layouts import Source
from mmrec_jax.data.log import Log
from mmrec_jax.errors import DataError

_RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")
_ENTITY = r"&(?:#[xX]?[0-9a-fA-F]+|[0-9A-Za-z]+);"


@dataclass(frozen=True)
class ReadSource:
    """What the files hold, checked.

    Attributes:
        log: the events by user and time; `items` index `catalogue`.
        catalogue: the items file, with the id as string in the first column "item".
        skipped: kind of bad row -> how many were left out.
        steps: number of events in the file, and after the bad rows, the rating threshold and the labels.
    """

    log: Log
    catalogue: pl.DataFrame
    skipped: dict[str, int]
    steps: list[dict[str, Any]]


@dataclass(frozen=True)
class _Events:
    """Interactions before they are judged.

    Attributes:
        table: the file's records.
        records: the record in which each event stands.
        users, items: their ids.
        times: None where only the order is known.
        wrong: kind of badness -> the events it is true of, and the column to quote from.
        unwanted: reason -> the events that are fine but not asked for.
    """

    table: Table
    records: Int[np.ndarray, " event"]
    users: Ids
    items: Ids
    times: Num[np.ndarray, " event"] | None
    wrong: dict[str, tuple[Bool[np.ndarray, " event"], pa.ChunkedArray]]
    unwanted: dict[str, Bool[np.ndarray, " event"]]


def read_source(source: Source, config: DataConfig) -> ReadSource:
    """Reads and checks the interactions and the catalogue of a source.

    Raises:
        DataError: a column is missing, or a row cannot be used (unless `config.on_bad_row` is "skip").
    """
    bad = BadRows()
    events = _sequence_events(source, bad) if source.layout == "sequences" else _table_events(source, config, bad)
    catalogue = _catalogue(source, events, bad)
    if config.title_column not in ("title", *catalogue.columns):  # "title" may be absent: ids stand in for titles
        raise DataError(
            f"the catalogue has no column {config.title_column!r} (it has: {', '.join(catalogue.columns)}): set "
            "data.title_column to the right one."
        )
    items = catalogue_rows(events.items, catalogue["item"])
    kept = _usable(events, items, source, bad)
    steps: list[dict[str, Any]] = [{"step": f"read {source.interactions.name}", "interactions": len(kept)}]
    if not kept.all():
        steps.append({"step": "usable", "interactions": int(np.count_nonzero(kept))})
    for reason, mask in events.unwanted.items():
        kept &= ~mask
        steps.append({"step": f"without {reason}", "interactions": int(np.count_nonzero(kept))})
    log = Log(
        users=events.users.codes[kept],
        items=items[kept],
        times=None if events.times is None else events.times[kept],
        user_ids=events.users.names,
    )
    order = logs.time_order(log)
    log = log.take(order)
    if config.repeated_events == "bad_row":
        repeated = logs.repeated_events(log)
        records = np.sort(events.records[kept][order[repeated]])
        bad.add(
            events.table,
            "repeats an earlier row (data.repeated_events='keep' allows it)",
            records,
        )
        log = log.take(~repeated) if len(records) else log
    steps.append({"step": "checked", **log.counts()})
    return ReadSource(log, catalogue, bad.settle(config.on_bad_row), steps)


def unescape_html(series: pl.Series) -> pl.Series:
    """Replaces HTML entities that end in a semicolon, all in one pass ("&amp;lt;" becomes "&lt;")."""
    entities = series.str.extract_all(_ENTITY).explode().drop_nulls().unique().to_list()
    if not entities:
        return series
    return series.str.replace_many(entities, [html.unescape(entity) for entity in entities])


def _usable(
    events: _Events, items: Int32[np.ndarray, " event"], source: Source, bad: BadRows
) -> Bool[np.ndarray, " event"]:
    """Which events have no fault; the others are noted under the first fault they have."""
    usable = np.ones(len(items), bool)
    catalogue = source.items.name if source.items else "the catalogue"

    def note(kind: str, mask: Bool[np.ndarray, " event"], column: pa.ChunkedArray | None) -> None:
        at = np.flatnonzero(usable & mask)
        bad.add(events.table, kind, events.records[at], None if column is None else some_values(column, at))
        usable[at] = False

    note("user id is missing", events.users.codes < 0, None)
    note("item id is missing", events.items.codes < 0, None)
    note(f"item is not in {catalogue}", items < 0, events.items.column)
    for kind, (mask, column) in events.wrong.items():
        note(kind, mask, column)
    return usable


def _table_events(source: Source, config: DataConfig, bad: BadRows) -> _Events:
    """Events of a table with one record each."""
    wanted = [source.user, source.item, source.timestamp]
    wanted += [source.rating] if config.min_rating is not None else []
    wanted += [config.label_column] if config.label_column else []
    path = source.interactions
    table = _read_atomic(path) if source.layout == "recbole" else read_table(path, wanted)
    bad.add_malformed(table)
    times = table.column(source.timestamp, "timestamp_column")
    numbers, faults = parse_times(times)
    wrong = {kind: (mask, times) for kind, mask in faults.items()}
    unwanted = {}
    if config.min_rating is not None:
        column = table.column(source.rating, "rating_column")
        ratings, unreadable = parse_numbers(column)
        wrong["rating is not a number"] = (unreadable, column)
        unwanted[f"rating below {config.min_rating}"] = ratings < config.min_rating
    if config.label_column:
        column = table.column(config.label_column, "label_column")
        labels, unreadable = parse_numbers(column)
        wrong["label is neither 0 nor 1"] = (unreadable | ((labels != 0) & (labels != 1)), column)
        unwanted["label 0"] = labels == 0
    return _Events(
        table=table,
        records=np.arange(len(table)),
        users=encode_ids(table.column(source.user, "user_column")),
        items=encode_ids(table.column(source.item, "item_column")),
        times=numbers,
        wrong=wrong,
        unwanted=unwanted,
    )


def _sequence_events(source: Source, bad: BadRows) -> _Events:
    """Events of a file with one user a line: the id, a tab, and item ids in time order."""
    table = read_text(source.interactions, delimiter="\t", header=False, quoted=False)
    bad.add_malformed(table)
    users = encode_ids(table.column(source.user, "user_column"))
    histories = pl.Series("items", table.column(source.item, "item_column")).str.strip_chars()
    first = np.zeros(len(table), bool)
    first[np.unique(users.codes, return_index=True)[1]] = True
    again = np.flatnonzero(~first & (users.codes >= 0))
    empty = np.flatnonzero((histories == "").to_numpy())
    bad.add(table, "user occurs in an earlier row", again, some_values(table.columns[source.user], again))
    bad.add(table, "history is empty", empty)
    left_out = np.union1d(again, empty)
    kept = np.setdiff1d(np.arange(len(table)), left_out)
    lists = histories.gather(kept).str.split(" ").list.eval(pl.element().filter(pl.element() != ""))
    records = np.repeat(kept, lists.list.len().to_numpy())
    return _Events(
        table=table,
        records=records,
        users=Ids(users.codes[records], users.names, table.columns[source.user]),
        items=encode_ids(pa.chunked_array([lists.explode().to_arrow()])),
        times=None,
        wrong={},
        unwanted={},
    )


def _read_atomic(path: Path) -> Table:
    """A RecBole atomic file: tab-separated, its header gives `name:type` for each column."""
    table = read_text(path, delimiter="\t", quoted=False)
    names = []
    for typed in table.columns.column_names:
        name, colon, kind = typed.partition(":")
        if not colon or kind not in _RECBOLE_TYPES:
            raise DataError(
                f"{path}: the header field {typed!r} must be `name:type`; types are {', '.join(_RECBOLE_TYPES)}."
            )
        names.append(name)
    return replace(table, columns=table.columns.rename_columns(names))


def _catalogue(source: Source, events: _Events, bad: BadRows) -> pl.DataFrame:
    if source.items is None:
        present = events.items.names.drop_nulls()
        return pl.DataFrame({"item": present.filter(present != "")})
    if source.layout == "sequences":
        table = read_text(source.items, delimiter="\t", header=False, quoted=False)
        catalogue = check_catalogue(table, source.catalogue_item, bad)
        catalogue = catalogue.rename({"f1": "title"}, strict=False)
        return catalogue.with_columns(unescape_html(catalogue["title"])) if "title" in catalogue.columns else catalogue
    recbole = source.layout == "recbole"
    table = _read_atomic(source.items) if recbole else read_items(source.items, source.catalogue_item, source.directory)
    return check_catalogue(table, source.catalogue_item, bad)
