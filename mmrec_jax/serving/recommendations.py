"""Histories that come in from files or by user id, and recommendations that go out to files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from mmrec_jax.data.ragged import Ragged, joined
from mmrec_jax.errors import ConfigError, DataError, UnknownItemError

if TYPE_CHECKING:
    from mmrec_jax.data.prepared import PreparedData

_WRITERS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    ".parquet": pl.DataFrame.write_parquet,
    ".json": pl.DataFrame.write_json,
    ".jsonl": pl.DataFrame.write_ndjson,
}
NAMED = 5
"""How many culprits a message names."""


def read_histories(path: str | Path) -> dict[str, list[str]]:
    """Histories of item ids in time order, from a file.

    - `.json`: a list of histories: each a list of item ids, or an object `{"user": ..., "items": [...]}`.
    - `.jsonl`: one history a line, of either form.
    - `.parquet`: one history a record: a list column `items`, and optionally `user`.

    Returns:
        Query name -> item ids as strings. The name is `user`, or the history's number in the file from 0.

    Raises:
        DataError: the file is missing or malformed, holds no history, or a user twice; names file and entry.
        ConfigError: another file ending.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file of histories at {path}")
    if path.suffix == ".parquet":
        entries: list[Any] = _parquet_entries(path)
    elif path.suffix in (".json", ".jsonl"):
        entries = _json_entries(path)
    else:
        raise ConfigError(f"{path}: histories are read from .json, .jsonl or .parquet")
    if not entries:
        raise DataError(f"{path} holds no history")
    names = [
        str(entry["user"]) if isinstance(entry, dict) and entry.get("user") is not None else str(number)
        for number, entry in enumerate(entries)
    ]
    if len(set(names)) != len(names):
        distinct, counts = np.unique(names, return_counts=True)
        raise DataError(f"{path}: several histories of {_some(distinct[counts > 1].tolist())}: keep one for each")
    histories = [_items(entry, path, number) for number, entry in enumerate(entries)]
    return dict(zip(names, histories, strict=True))


def catalogue_rows(
    histories: Mapping[str, Sequence[str]], rows: Mapping[str, int], on_unknown_item: str
) -> tuple[Ragged, int, list[str]]:
    """Histories of item ids as catalogue rows.

    Args:
        histories: query name -> item ids in time order.
        rows: item id -> catalogue row, from 1.
        on_unknown_item: `error`, or `skip` to leave out ids that the catalogue lacks, and histories that hold nothing
            else.

    Returns:
        One row a history that is not left out, in the mapping's order; how many unknown items were left out; and the
        names of the histories that were.

    Raises:
        ConfigError: another policy.
        UnknownItemError: unknown items under `error`, or nothing else in any history under `skip`.
        DataError: no history, or an empty one.
    """
    if on_unknown_item not in ("error", "skip"):
        raise ConfigError(f"on_unknown_item = {on_unknown_item!r}: choose error or skip")
    if not histories:
        raise DataError("there is no history to recommend for")
    names = list(histories)
    lengths = np.fromiter(map(len, histories.values()), np.int64, len(names))
    _refuse(names, lengths == 0, DataError, "empty histories", "leave them out")
    flat = list(map(str, chain.from_iterable(histories.values())))
    found = np.fromiter(map(rows.get, flat, repeat(0)), np.int32, len(flat))
    unknown = np.flatnonzero(found == 0)
    history = np.repeat(np.arange(len(names)), lengths)
    if len(unknown) and on_unknown_item == "error":
        first = [f"{flat[place]} (history {names[history[place]]})" for place in unknown[:NAMED]]
        raise UnknownItemError(
            f"{len(unknown)} items are not in the catalogue: {_some(first, len(unknown))}. Correct the ids, "
            "add the items with add_items, or leave them out with on_unknown_item = skip"
        )
    left = np.bincount(history[found > 0], minlength=len(names))
    without = [names[number] for number in np.flatnonzero(left == 0)]
    if len(without) == len(names):
        raise UnknownItemError(
            f"no history holds an item of the catalogue: {_some(without)}. Correct the ids, or add the items with "
            "add_items"
        )
    return Ragged.of_lengths(found[found > 0], left[left > 0]), len(unknown), without


def user_histories(prepared: PreparedData, users: Sequence[str]) -> Ragged:
    """All known events of users by id, held-out ones included, in time order.

    Raises:
        DataError: ids that the data does not have.
    """
    numbers = dict(zip(prepared.user_ids.tolist(), range(prepared.num_users), strict=True))
    found = np.fromiter(map(numbers.get, map(str, users), repeat(-1)), np.int64, len(users))
    remedy = f"{prepared.directory} has {prepared.num_users} users; give their item ids as histories instead"
    _refuse([str(user) for user in users], found < 0, DataError, "unknown users", remedy)
    before = joined(prepared.train.take(found), prepared.valid.take(found))
    return joined(before, prepared.test.take(found))


def recommendations(
    queries: Sequence[str],
    items: Int[np.ndarray, "query k"],
    scores: Float[np.ndarray, "query k"],
    *,
    item_ids: Sequence[str] | np.ndarray,
    titles: Sequence[str] | np.ndarray,
    weights: Mapping[str, Float[np.ndarray, " row"]] | None = None,
) -> pl.DataFrame:
    """Top-k lists as a table.

    Args:
        queries: name of each list.
        items: catalogue rows, best first; row 0 fills lists that are short, and is left out.
        scores: their scores.
        item_ids, titles: of every catalogue row.
        weights: modality -> its share in the vector of every catalogue row.

    Returns:
        Columns query, rank (from 1), item, title, score, and `weight_<modality>` for each modality.
    """
    rows = items.reshape(-1).astype(np.int64)
    columns = {
        "query": pl.Series(queries, dtype=pl.String).gather(np.repeat(np.arange(len(queries)), items.shape[1])),
        "rank": np.tile(np.arange(1, items.shape[1] + 1, dtype=np.int32), len(queries)),
        "item": pl.Series(list(item_ids), dtype=pl.String).gather(rows),
        "title": pl.Series(list(titles), dtype=pl.String).gather(rows),
        "score": scores.reshape(-1),
    }
    columns |= {f"weight_{name}": np.asarray(values)[rows] for name, values in (weights or {}).items()}
    return pl.DataFrame(columns).filter(rows > 0)


def write_recommendations(table: pl.DataFrame, path: str | Path) -> None:
    """Write a table of recommendations; the file appears whole or not at all.

    `.parquet`: one record an item. `.json`: a list of such records. `.jsonl`: one record a line.

    Raises:
        ConfigError: another file ending.
    """
    path = Path(path)
    check_ending(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _WRITERS[path.suffix](table, unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_ending(path: Path) -> None:
    """Makes sure that recommendations can be written to a file of this name.

    Raises:
        ConfigError: they cannot.
    """
    if path.suffix not in _WRITERS:
        raise ConfigError(f"{path}: recommendations are written as {', '.join(_WRITERS)}")


def _json_entries(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        return [_parsed(line, f"{path} line {number}") for number, line in lines]
    entries = _parsed(text, str(path))
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of histories, found {type(entries).__name__}")
    return entries


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error}") from error


def _parquet_entries(path: Path) -> list[dict[str, Any]]:
    try:
        frame = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    if not isinstance(frame.schema.get("items"), pl.List):
        raise DataError(f"{path}: needs a column 'items' of lists; it has {frame.schema}")
    return frame.select([name for name in ("user", "items") if name in frame.columns]).to_dicts()


def _items(entry: Any, path: Path, number: int) -> list[str]:
    items = entry.get("items") if isinstance(entry, dict) else entry
    if not isinstance(items, list) or not items or not set(map(type, items)) <= {str, int}:
        raise DataError(
            f"{path} entry {number}: a history is a list of at least one item id, or an object with such a "
            f"list as 'items'; found {json.dumps(entry, default=str)[:80]}"
        )
    return list(map(str, items))


def _refuse(names: Sequence[str], bad: np.ndarray, error: type[DataError], what: str, remedy: str) -> None:
    culprits = np.flatnonzero(bad)
    if len(culprits):
        first = [names[culprit] for culprit in culprits[:NAMED]]
        raise error(f"{len(culprits)} {what}: {_some(first, len(culprits))}: {remedy}")


def _some(names: Sequence[str], total: int | None = None) -> str:
    total = len(names) if total is None else total
    return ", ".join(names[:NAMED]) + (", ..." if total > NAMED else "")
