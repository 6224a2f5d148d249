"""Reading a table of strings (csv, tsv) or typed columns (parquet), with the rows as a person counts them."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from jaxtyping import Int

from mmrec_jax.data.binary import bytes_path, references
from mmrec_jax.errors import DataError

SUFFIXES = (".csv", ".tsv", ".parquet")

_LONGEST_RECORD = 1 << 24  # bytes: the parser cannot read longer ones


@dataclass(frozen=True)
class Table:
    """A file's columns.

    Attributes:
        name: the file's name, for messages.
        columns: the data; text files give strings, parquet its own types.
        first_row: number of the first record as seen in the file: 2 below a header line, else 1.
        malformed: numbers of the records that have too few or too many fields; they are not in `columns`.
        blank: numbers of the empty lines; they are not in `columns` either.
    """

    name: str
    columns: pa.Table
    first_row: int = 1
    malformed: tuple[int, ...] = ()
    blank: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.columns.num_rows

    def rows(self, indices: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
        """The records' numbers as seen in the file (a quoted field may span lines; a record counts once)."""
        indices = np.asarray(indices, np.int64)
        absent = self.malformed + self.blank
        if not absent:
            return indices + self.first_row
        every = np.arange(self.first_row, self.first_row + len(self) + len(absent))
        return np.setdiff1d(every, absent)[indices]

    def column(self, name: str, key: str) -> pa.ChunkedArray:
        """One column, or a DataError that says which config key names it."""
        if name not in self.columns.column_names:
            raise DataError(
                f"{self.name} has no column {name!r} (it has: {', '.join(self.columns.column_names)}): "
                f"set data.{key} to the right one."
            )
        return self.columns[name]


def read_table(path: Path, columns: list[str] | None = None) -> Table:
    """Reads a csv, tsv or parquet file; its suffix tells which.

    Args:
        path: the file.
        columns: of a parquet file, read only these; names that the file lacks are passed over.

    Raises:
        DataError: the file cannot be parsed, or holds no record.
    """
    if path.suffix == ".parquet":
        return _read_parquet(path, columns)
    return read_text(path, delimiter="\t" if path.suffix == ".tsv" else ",")


def read_items(path: Path, id_column: str, directory: Path | None = None) -> Table:
    """Reads a file of items; columns of media as bytes, in a Parquet file, hold references instead.

    Only extraction reads the bytes, one by one: they may be more than the memory holds.

    Args:
        path: the file.
        id_column: of the item ids.
        directory: that references name the file from; None for the file's own.

    Raises:
        DataError: as `read_table`; media as bytes in a file outside of the directory.
    """
    if path.suffix != ".parquet":
        return read_table(path)
    schema = _parquet_schema(path)
    paths = {field.name: bytes_path(field) for field in schema if field.name != id_column}
    table = read_table(path, [field.name for field in schema if not paths.get(field.name)])
    for column, inside in paths.items():
        if inside:
            made = references(_below(path, directory or path.parent), inside, len(table))
            table = replace(table, columns=table.columns.append_column(column, made))
    return table


def _below(path: Path, directory: Path) -> str:
    if not path.is_relative_to(directory):
        raise DataError(
            f"{path} holds media as bytes, which are read from below data.source={str(directory)!r}: move it there."
        )
    return path.relative_to(directory).as_posix()


def read_text(path: Path, *, delimiter: str, header: bool = True, quoted: bool = True) -> Table:
    """Reads a text table in UTF-8; every column stays a string, and empty lines are passed over.

    Args:
        path: the file.
        delimiter: what separates the fields.
        header: whether the first line names the columns; else they are named f0, f1, ...
        quoted: whether a field may stand in double quotes.

    Raises:
        DataError: the file holds no record, repeats a column name, or is not such a table.
    """
    names = _column_names(path, delimiter, header, quoted)
    malformed: list[int] = []

    def leave_out(row: pyarrow.csv.InvalidRow) -> str:
        malformed.append(row.number)
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            path,
            # One thread: only then does the parser number the rows it leaves out.
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, block_size=_LONGEST_RECORD, autogenerate_column_names=not header
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                ignore_empty_lines=False,
                invalid_row_handler=leave_out,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=False
            ),
        )
    except pa.ArrowException as error:
        raise DataError(f"{path} cannot be read as a table of UTF-8 text: {error}") from error
    return _without_blank(Table(path.name, table, 2 if header else 1, tuple(malformed)), path)


def _read_parquet(path: Path, columns: list[str] | None) -> Table:
    try:
        if columns is not None:
            present = _parquet_schema(path).names
            columns = [name for name in dict.fromkeys(columns) if name in present] or None
        table = pyarrow.parquet.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error
    if not table.num_rows:
        raise DataError(f"{path} holds no record.")
    return Table(path.name, table)


def _parquet_schema(path: Path) -> pa.Schema:
    try:
        return pyarrow.parquet.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {error}") from error


def _column_names(path: Path, delimiter: str, header: bool, quoted: bool) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            if quoted:
                first = next(csv.reader(text, delimiter=delimiter), [])
            else:
                line = text.readline().rstrip("\r\n")
                first = line.split(delimiter) if line else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if not first:
        raise DataError(f"{path} is empty{', or its first line is: put the column names there' if header else ''}.")
    if not header:
        return [f"f{index}" for index in range(len(first))]
    if len(set(first)) < len(first):
        repeated = sorted({name for name in first if first.count(name) > 1})
        raise DataError(f"{path} names the columns {', '.join(repeated)} more than once: rename them.")
    return first


def _without_blank(table: Table, path: Path) -> Table:
    blank = np.ones(len(table), bool)
    for column in table.columns.columns:
        blank &= pc.equal(column, "").to_numpy()
    numbers = tuple(table.rows(np.flatnonzero(blank)).tolist())
    kept = table.columns.filter(pa.array(~blank)) if numbers else table.columns
    if not kept.num_rows and not table.malformed:
        raise DataError(f"{path} holds no record{' below its header' if table.first_row == 2 else ''}.")
    return Table(table.name, kept, table.first_row, table.malformed, numbers)
