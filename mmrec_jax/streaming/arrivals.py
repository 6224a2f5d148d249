"""Window files that appear in a directory: which is the next, and whether it has been written to its end.

A window is a file `NAME.parquet`, `.csv` or `.tsv`; its items may come beside it in `NAME.items.parquet` (or `.csv`,
`.tsv`). Windows are taken in the order of their names. A file is taken once it has not changed for a while and is
whole: a Parquet file with its footer, a text file whose last line ends. Names that begin with `.` or `_` are not looked
at, so a writer may use one and rename the file when it is finished.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from mmrec_jax.data.files import SUFFIXES
from mmrec_jax.errors import DataError
from mmrec_jax.streaming.journal import Entry

ITEMS = ".items"
_MAGIC = b"PAR1"  # begins and ends a Parquet file


class BadWindow(DataError):
    """A window that cannot be used as it is.

    Attributes:
        name: of the window.
        digest: of its files, as far as they were read.
    """

    def __init__(self, name: str, message: str, digest: str = "") -> None:
        super().__init__(f"Window {name}: {message}")
        self.name, self.digest = name, digest


@dataclass(frozen=True)
class Arrival:
    """The files of a window, written to their end.

    Attributes:
        name: of the file, without its ending.
        events: file of the events.
        items: file of the items that come with them, if there is one.
        digest: sha256 of both.
    """

    name: str
    events: Path
    items: Path | None
    digest: str


@dataclass
class _Look:
    """What a file looked like, since when, and the digest of its content once that was read."""

    size: int
    modified: int
    since: float
    digest: str = ""


class Arrivals:
    """The windows of a directory.

    Args:
        directory: to look at.
        settle: seconds that a file must have stayed as it is.
        patience: seconds without change after which a file that is not whole counts as bad.
        clock: tells the time in seconds.
    """

    def __init__(
        self, directory: Path, settle: float, patience: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.directory, self._settle, self._patience, self._clock = directory, settle, patience, clock
        self._looks: dict[Path, _Look] = {}

    def next(self, entries: Sequence[Entry]) -> Arrival | None:
        """The first window in the order of names that a journal does not have; None while there is none, or while it is
        still being written.

        A window that was skipped comes again once its files are others.

        Args:
            entries: of the journal.

        Raises:
            BadWindow: it stays half-written, two files have its name, or it was taken in and is another now.
            DataError: the directory is not there.
        """
        if not self.directory.is_dir():
            raise DataError(f"--watch={self.directory} is no directory: make it, or name another.")
        try:
            return self._next(entries)
        except FileNotFoundError:  # removed or renamed while it was looked at: what is there tells the next look
            return None

    def _next(self, entries: Sequence[Entry]) -> Arrival | None:
        files = {path: path.name.removesuffix(path.suffix) for path in sorted(self.directory.iterdir()) if _seen(path)}
        self._looks = {path: look for path in files if (look := self._looked_at(path))}
        known: dict[str, set[str]] = {}
        for entry in entries:
            known.setdefault(entry.name, set()).add(entry.digest)
        accepted = {entry.name for entry in entries if entry.number is not None}
        for name in sorted({name for name in files.values() if not name.endswith(ITEMS)}):
            events, items = ([path for path, of in files.items() if of == wanted] for wanted in (name, name + ITEMS))
            both = [*events, *items]
            ready = all(self._ready(name, path, both, name not in known) for path in both)
            if name in known and (not ready or self._digest(both) in known[name]):
                continue
            if not ready:
                return None
            for found in (events, items):
                if len(found) > 1:
                    names = " and ".join(path.name for path in found)
                    raise BadWindow(name, f"there is {names}: remove one of them.", self._digest(both))
            if name in accepted:
                text = "was taken in, and its files hold something else now. Give what is new a name of its own."
                raise BadWindow(name, text, self._digest(both))
            return Arrival(name, events[0], items[0] if items else None, self._digest(both))
        return None

    def _digest(self, paths: list[Path]) -> str:
        """`digest`, of files that were looked at, without reading them again."""
        for path in paths:
            look = self._looks[path]
            look.digest = look.digest or digest(path)
        return hashlib.sha256("".join(self._looks[path].digest for path in paths).encode()).hexdigest()

    def _looked_at(self, path: Path) -> _Look | None:
        """What a file looks like; None where it is gone."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        look = self._looks.get(path)
        if look is None or (look.size, look.modified) != (status.st_size, status.st_mtime_ns):
            return _Look(status.st_size, status.st_mtime_ns, self._clock())
        return look

    def _ready(self, name: str, path: Path, both: list[Path], told: bool) -> bool:
        """Whether a file is settled and whole; of a window that is to be `told` of, it may not stay half-written."""
        look = self._looks.get(path)
        if look is None or self._clock() - look.since < self._settle:
            return False
        lacking = unfinished(path)
        still = self._clock() - look.since
        if lacking and told and still >= self._patience and all(each in self._looks for each in both):
            raise BadWindow(
                name,
                f"{path.name} {lacking} and has not changed for {still:.0f} s: it is half-written. Write it "
                "anew, under a name that begins with '.', and rename it when it is finished.",
                self._digest(both),
            )
        return not lacking


def unfinished(path: Path) -> str:
    """What a file that is still being written lacks; "" where it is whole."""
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
        if not start:
            return "is empty"
        file.seek(-min(len(_MAGIC), path.stat().st_size), 2)
        end = file.read()
    if path.suffix != ".parquet":
        return "" if end.endswith(b"\n") else "has no end of line after its last record"
    if start != _MAGIC or end != _MAGIC:
        return "has no Parquet footer"
    try:
        pyarrow.parquet.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        return f"has a Parquet footer that cannot be read ({error})"
    return ""


def digest(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seen(path: Path) -> bool:
    return path.suffix in SUFFIXES and not path.name.startswith((".", "_")) and path.is_file()
