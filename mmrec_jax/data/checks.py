"""Checks of raw tables: what cannot be used is named with file and row, and is an error or is counted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int, Int32, Num

from mmrec_jax.data.files import Table
from mmrec_jax.errors import DataError

_SHOWN = 5
_DATE_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
_ZONED_FORMATS = ("%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%d %H:%M%z")


@dataclass
class BadRows:
    """Collects rows that cannot be used, over all files, so that one message can name them together."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, table: Table, kind: str, records: Int[np.ndarray, " bad"], shown: list | None = None) -> None:
        """Notes records as bad.

        Args:
            table: where they stand.
            kind: what is wrong, one phrase for all of them.
            records: their positions in the table.
            shown: values to quote beside the first of them (`some_values`).
        """
        numbers = table.rows(records[:_SHOWN]).tolist()
        self._note(f"{table.name}: {kind}", len(records), numbers, [f" ({value})" for value in shown or []])

    def add_malformed(self, table: Table) -> None:
        """Notes the records that have too few or too many fields."""
        self._note(f"{table.name}: wrong number of fields", len(table.malformed), list(table.malformed[:_SHOWN]), [])

    def _note(self, kind: str, count: int, numbers: list[int], shown: list[str]) -> None:
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count
            rows = [f"row {row}{value}" for row, value in zip(numbers, shown or [""] * len(numbers), strict=True)]
            self.examples[kind] = (self.examples.get(kind, []) + rows)[:_SHOWN]

    def settle(self, on_bad_row: str) -> dict[str, int]:
        """Raises a DataError that names the bad rows, or returns their counts where they may be skipped."""
        if self.counts and on_bad_row == "error":
            total = sum(self.counts.values())
            lines = [
                f"  {kind}: {', '.join(self.examples[kind])}" + (f", ... ({count} in all)" if count > _SHOWN else "")
                for kind, count in self.counts.items()
            ]
            raise DataError(
                f"{total} row{'s' if total > 1 else ''} cannot be used:\n" + "\n".join(lines) + "\n"
                "Mend them, or set data.on_bad_row='skip' to leave such rows out and count them."
            )
        return dict(self.counts)


def some_values(column: pa.ChunkedArray, indices: Int[np.ndarray, " some"]) -> list:
    """The first few of a column's values at `indices`, for a message."""
    return column.take(pa.array(indices[:_SHOWN])).to_pylist()


@dataclass(frozen=True)
class Ids:
    """Ids as numbers.

    Attributes:
        codes: index into `names` by row; -1 = missing.
        names: the different ids as strings, by first appearance.
        column: the ids as they stand in the file.
    """

    codes: Int32[np.ndarray, " row"]
    names: pl.Series
    column: pa.ChunkedArray


def encode_ids(column: pa.ChunkedArray) -> Ids:
    """Numbers a column's ids by first appearance. Ids become strings, whole floats without ".0"."""
    column = without_dictionary(column)
    encoded = column.dictionary_encode().combine_chunks()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    names = id_strings(pl.Series("item", encoded.dictionary))
    missing = (names.is_null() | (names == "")).to_numpy()
    if missing.any():
        codes = np.where((codes >= 0) & ~missing[codes], codes, np.int32(-1))
    return Ids(codes, names, column)


def without_dictionary(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of categories as the values that they stand for; any other as it is."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def id_strings(series: pl.Series) -> pl.Series:
    """Ids as strings, so that 7 in one file and "7" in another are the same id."""
    if series.dtype.is_float():
        series = series.fill_nan(None)
        whole = series.cast(pl.Int64, strict=False)
        if bool((whole.cast(series.dtype) == series).fill_null(True).all()):
            series = whole
    return series.cast(pl.String)


def parse_times(
    column: pa.ChunkedArray,
) -> tuple[Num[np.ndarray, " row"], dict[str, Bool[np.ndarray, " row"]]]:
    """Times as numbers that sort: integers where all are whole, else floats; dates in us since 1970, UTC.

    Accepts numbers, dates and times, and strings of numbers or of ISO dates (one kind a column). Dates without an
    offset are taken for UTC.

    Returns:
        The times (0 where bad), and for each kind of badness the rows it is true of.
    """
    series = pl.Series("time", without_dictionary(column))
    if isinstance(series.dtype, pl.Decimal):
        series = series.cast(pl.Int64 if series.dtype.scale == 0 else pl.Float64, strict=False)
    missing = series.is_null().to_numpy()
    if series.dtype in (pl.Date, pl.Datetime):
        return series.cast(pl.Datetime("us")).cast(pl.Int64).fill_null(0).to_numpy(), {"time is missing": missing}
    if series.dtype == pl.String:
        text = series.str.strip_chars()
        missing = missing | (text == "").fill_null(True).to_numpy()
        series, dates = _numbers_or_dates(text)
        if dates:
            unreadable = series.is_null().to_numpy() & ~missing
            return series.fill_null(0).to_numpy(), {
                "time is missing": missing,
                "time is neither a number nor an ISO date": unreadable,
            }
    if not series.dtype.is_numeric():
        raise DataError(f"a time column of type {series.dtype} cannot be used: give numbers, dates or ISO strings.")
    unreadable = (series.is_null() | ~series.is_finite().fill_null(False)).to_numpy() & ~missing
    numbers = series.fill_null(0).to_numpy()
    numbers = np.where(unreadable, 0, numbers).astype(numbers.dtype) if unreadable.any() else numbers
    if numbers.dtype.kind == "f" and np.all(np.abs(numbers) < 2**53) and np.all(numbers == np.floor(numbers)):
        numbers = numbers.astype(np.int64)
    return numbers, {
        "time is missing": missing,
        "time is neither a number nor an ISO date": unreadable,
        "time is negative": (numbers < 0) & ~missing,
    }


def _numbers_or_dates(text: pl.Series) -> tuple[pl.Series, bool]:
    """Text as numbers, or as microseconds since 1970 if none of it is a number; null where it is neither."""
    whole = text.cast(pl.Int64, strict=False)
    if whole.count() == len(text):
        return whole, False
    floats = text.cast(pl.Float64, strict=False)
    floats = floats.set(~floats.is_finite(), None)
    if floats.count():
        return (whole if whole.count() == floats.count() else floats), False
    plain = text.str.replace(" ?(?:Z|UTC)$", "").str.replace("T", " ", literal=True)
    plain = plain.str.replace(
        r"(:[\d.]+) ?([+-]\d\d)$", "${1}${2}00"
    )  # an offset of hours alone, as Postgres writes it
    parsed = [plain.str.to_datetime(form, strict=False, time_unit="us") for form in _DATE_FORMATS + _ZONED_FORMATS]
    dates = pl.select(pl.coalesce([dates.dt.replace_time_zone(None) for dates in parsed]))
    return dates.to_series().cast(pl.Int64), True


def parse_numbers(column: pa.ChunkedArray) -> tuple[Num[np.ndarray, " row"], Bool[np.ndarray, " row"]]:
    """A column as float32, and the rows that hold no finite number (0 there). Booleans count as 0 and 1."""
    series = pl.Series("number", without_dictionary(column))
    if series.dtype == pl.String:
        lowered = series.str.strip_chars().str.to_lowercase()
        series = lowered.replace({"true": "1", "false": "0"})
    numbers = series.cast(pl.Float32, strict=False)
    bad = ~numbers.is_finite().fill_null(False).to_numpy()
    return np.where(bad, np.float32(0), numbers.fill_null(0).to_numpy()), bad


def check_catalogue(table: Table, id_column: str, bad: BadRows) -> pl.DataFrame:
    """The catalogue with the id column first, as strings and named "item"; rows with a missing or repeated id
    are noted and left out (of a repeated id, the first row stays).

    Raises:
        DataError: the id column is missing, or another column has the name "item".
    """
    ids = encode_ids(table.column(id_column, "catalogue_item_column"))
    if id_column != "item" and "item" in table.columns.column_names:
        raise DataError(
            f"{table.name} has a column 'item' beside its id column {id_column!r}: rename it, or set "
            "data.catalogue_item_column='item' if that is the id."
        )
    bad.add_malformed(table)
    missing = ids.codes < 0
    first = np.zeros(len(table), bool)
    first[np.unique(ids.codes, return_index=True)[1]] = True
    bad.add(table, "item id is missing", np.flatnonzero(missing))
    again = np.flatnonzero(~first & ~missing)
    bad.add(table, "item id occurs in an earlier row", again, some_values(table.columns[id_column], again))
    kept = first & ~missing
    frame = pl.DataFrame(table.columns.drop_columns([id_column]).filter(pa.array(kept)))
    frame.insert_column(0, ids.names.gather(ids.codes[kept]).alias("item"))
    return frame


def catalogue_rows(ids: Ids, catalogue_ids: pl.Series) -> Int32[np.ndarray, " row"]:
    """For each row of `ids`, its index in the catalogue; -1 where the id is missing or unknown."""
    found = pc.index_in(ids.names.to_arrow().cast(pa.large_string()), catalogue_ids.to_arrow().cast(pa.large_string()))
    known = np.append(found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32), np.int32(-1))
    return known[ids.codes]
