"""Media kept as bytes in a Parquet file: references that stand for them in a table, and reading them one by one."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from mmrec_jax.errors import DataError

_REFERENCE = re.compile(r"(?P<file>.+\.parquet)#(?P<column>[^#:]+):(?P<row>\d+)")
_SLICE = 4  # records decoded at once: media may be large
_BUFFER = 1 << 20  # bytes read at once


def bytes_path(field: pa.Field) -> str:
    """Where a column holds bytes: its own name, "NAME.bytes" for a struct with such a field, or "" for no bytes."""
    kind = field.type
    if pa.types.is_struct(kind):
        inner = [kind.field(i) for i in range(kind.num_fields)]
        return f"{field.name}.bytes" if any(f.name == "bytes" and bytes_path(f) for f in inner) else ""
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return field.name if any(test(kind) for test in tests) else ""


def references(file: str, column: str, rows: int) -> pa.Array:
    """What stands for the bytes of each record: "FILE#COLUMN:ROW"."""
    return pa.array([f"{file}#{column}:{row}" for row in range(rows)])


def parse_reference(text: str) -> tuple[str, str, int] | None:
    """File, column and row of a reference; None for any other text."""
    found = _REFERENCE.fullmatch(text)
    return (found["file"], found["column"], int(found["row"])) if found else None


class BinaryColumn:
    """The bytes of one column, of which a few records are in memory at any time.

    Reading goes on from where it was; it is fast for rows that ascend, also when several threads ask for near ones.
    """

    def __init__(self, path: Path, column: str, near: int):
        """Args:
        path: of the Parquet file.
        column: as `bytes_path` names it.
        near: how far apart rows that are asked for at a time may be.
        """
        self._path, self._column, self._near = path, column, near
        self._lock = threading.Lock()
        self._file: pa.parquet.ParquetFile | None = None
        self._starts: list[int] = []
        self._reading: Iterator[pa.RecordBatch] = iter(())
        self._group, self._next = -1, 0
        self._kept: deque[tuple[int, pa.Array]] = deque(maxlen=-(-near // _SLICE) + 2)

    def __reduce__(self) -> tuple:
        return BinaryColumn, (self._path, self._column, self._near)

    def __getitem__(self, row: int) -> bytes | None:
        """A record's bytes; None where it has none.

        Raises:
            DataError: the file cannot be read, or has no such column or row.
        """
        try:
            with self._lock:
                return self._find(row)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self._path} cannot be read as parquet: {error}") from error

    def _find(self, row: int) -> bytes | None:
        for start, values in self._kept:
            if start <= row < start + len(values):
                return values[row - start].as_py()
        self._seek(row)
        for batch in self._reading:
            start, self._next = self._next, self._next + batch.num_rows
            values = batch.column(0)
            if pa.types.is_struct(values.type):
                values = values.field("bytes")
            self._kept.append((start, values))
            if row < self._next:
                return values[row - start].as_py()
        raise DataError(f"{self._path} has no row {row} in column {self._column}")

    def _seek(self, row: int) -> None:
        """Goes to the row group that holds a row, unless the reading under way comes to it anyhow."""
        if self._file is None:
            self._file = pa.parquet.ParquetFile(self._path, buffer_size=_BUFFER, pre_buffer=False)
            meta = self._file.metadata
            self._starts = [0]
            for group in range(meta.num_row_groups):
                self._starts.append(self._starts[-1] + meta.row_group(group).num_rows)
        if row >= self._starts[-1]:
            raise DataError(f"{self._path} has no row {row}: it holds {self._starts[-1]}")
        group = next(group for group, end in enumerate(self._starts[1:]) if row < end)
        if group != self._group or self._next > row:
            self._group = group
            self._reading = self._file.iter_batches(_SLICE, row_groups=[group], columns=[self._column])
            self._next = self._starts[group]
