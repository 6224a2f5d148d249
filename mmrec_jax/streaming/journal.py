"""What a stream has taken in: a line for each window, and its events and items copied beside.

    journal/
      journal.jsonl            a line for each window accepted or skipped, in order; only ever added to
      000007.parquet           events of window 7: user, item, time
      000007.items.parquet     its new items
      encoding                 digest of the window whose new items are being encoded, or were

The files are there before the line that counts them, so whoever is killed in between takes the window in again. What
a kill leaves of a line is cut off when the journal is opened.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl

from mmrec_jax.errors import DataError
from mmrec_jax.files import sync

FOLDER = "journal"
LINES, ENCODING = "journal.jsonl", "encoding"


@dataclass(frozen=True)
class Entry:
    """A window that was accepted or skipped.

    Attributes:
        name: of its file, without the ending.
        digest: sha256 of its files.
        number: of the window; None where it was skipped.
        reason: why it was skipped; "" where it was not.
        notes: what was odd about it.
        events, users, items: how many it has.
        new_items: how many of the items came with it.
        first, last: times of its first and last event; None where it was skipped.
        columns: its events file's columns.
        times: `numbers` or `dates`: what its times are.
        missing: modality -> share of the events whose item lacks it.
    """

    name: str
    digest: str
    number: int | None
    reason: str = ""
    notes: tuple[str, ...] = ()
    events: int = 0
    users: int = 0
    items: int = 0
    new_items: int = 0
    first: float | None = None
    last: float | None = None
    columns: tuple[str, ...] = ()
    times: str = ""
    missing: dict[str, float] = field(default_factory=dict)


class Journal:
    """The journal of a workdir.

    Attributes:
        entries: all of them, in order.

    Raises:
        DataError: it is damaged.
    """

    def __init__(self, workdir: Path) -> None:
        self.directory = workdir / FOLDER
        self.directory.mkdir(parents=True, exist_ok=True)
        self.entries: list[Entry] = self._read()

    @property
    def accepted(self) -> list[Entry]:
        """Windows that are part of the stream."""
        return [entry for entry in self.entries if entry.number is not None]

    def accept(self, entry: Entry, events: pl.DataFrame, items: pl.DataFrame) -> None:
        """Takes a window in: its events (user, item, time) and its new items."""
        assert entry.number is not None
        for path, frame in ((self._events(entry.number), events), (self._items(entry.number), items)):
            unfinished = path.with_name(f".{path.name}")
            frame.write_parquet(unfinished)
            sync(unfinished)
            unfinished.replace(path)
        sync(self.directory)
        self._add(entry)

    def skip(self, name: str, digest: str, reason: str) -> None:
        """Remembers that a window was left out."""
        self._add(Entry(name, digest, None, reason))

    def events(self, number: int) -> pl.DataFrame:
        """Events of a window: user, item, time.

        Raises:
            DataError: they are not there any more.
        """
        return self._frame(self._events(number))

    def items(self, number: int) -> pl.DataFrame:
        """Records of the items that came with a window.

        Raises:
            DataError: they are not there any more.
        """
        return self._frame(self._items(number))

    def remove_before(self, number: int) -> None:
        """Removes the copies of windows before one; their lines stay."""
        for path in self.directory.glob("[0-9]*.parquet"):
            if int(path.name.partition(".")[0]) < number:
                path.unlink()

    def _frame(self, path: Path) -> pl.DataFrame:
        try:
            return pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{path} cannot be read ({error}): the stream's own copy of a window is gone.") from error

    def _events(self, number: int) -> Path:
        return self.directory / f"{number:06d}.parquet"

    def _items(self, number: int) -> Path:
        return self.directory / f"{number:06d}.items.parquet"

    def _add(self, entry: Entry) -> None:
        with (self.directory / LINES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries.append(entry)

    def _read(self) -> list[Entry]:
        path = self.directory / LINES
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(path, len(whole))
        entries = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                values = json.loads(line)
                entries.append(Entry(**values | {key: tuple(values[key]) for key in ("notes", "columns")}))
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{path}, line {number}, is damaged ({error}): restore it from a copy.") from error
        return entries
