"""What a model in service knows of the stream: the catalogue and every user's events, as prepared data.

    served/
      000007/     prepared data after window 7, with a manifest of the usual form
      current     a link to the newest

The link is moved all at once, so that a reader finds the state before or after a window. All versions read the same
data: rolling back changes the model, not what is known of users.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from mmrec_jax.data.prepared import CATALOGUE, MANIFEST, USERS, PreparedData, open_prepared
from mmrec_jax.data.ragged import Ragged, offsets_of
from mmrec_jax.errors import DataError
from mmrec_jax.files import sync, sync_all

FOLDER = "served"
CURRENT = "current"
_SEEN = "_seen"
_JOINED = ({"numbers", "text"}, {"dates", "text"})  # become text


@dataclass(frozen=True)
class Served:
    """The state after a window.

    Attributes:
        window: number of the last one taken in; 0 before the first.
        catalogue: one record an item: the id as "item", its other columns, and in "seen" the last window it occurs in.
        users: user ids.
        seen: last window of each user.
        events: item rows (from 1) of each user's events, in order of time.
    """

    window: int
    catalogue: pl.DataFrame
    users: pl.Series
    seen: np.ndarray
    events: Ragged

    @classmethod
    def empty(cls) -> Served:
        """Before the first window."""
        return cls(
            0,
            pl.DataFrame(schema={"item": pl.String, _SEEN: pl.Int64}),
            pl.Series("user", [], dtype=pl.String),
            np.zeros(0, np.int64),
            Ragged(np.zeros(0, np.int32), np.zeros(1, np.int64)),
        )

    @property
    def items(self) -> set[str]:
        """Ids of the catalogue."""
        return set(self.catalogue["item"])

    def after(self, window: int, events: pl.DataFrame, items: pl.DataFrame) -> Served:
        """The state after one more window.

        Args:
            window: its number.
            events: user, item, time, in order of time; every item is in the catalogue or among `items`.
            items: records of its new items.

        Raises:
            DataError: a column of the items holds something else than in the catalogue.
        """
        fresh = items.filter(~pl.col("item").is_in(self.catalogue["item"].to_list()))
        catalogue = (
            self._with(fresh.with_columns(pl.lit(window, pl.Int64).alias(_SEEN))) if len(fresh) else self.catalogue
        )
        occurring = events["item"].unique().to_list()
        seen_now = pl.when(pl.col("item").is_in(occurring)).then(pl.lit(window, pl.Int64)).otherwise(pl.col(_SEEN))
        catalogue = catalogue.with_columns(seen_now.alias(_SEEN))
        users = pl.concat([self.users, events["user"]]).unique(maintain_order=True)
        number = dict(zip(users.to_list(), range(len(users)), strict=True))
        row = dict(zip(catalogue["item"].to_list(), range(1, len(catalogue) + 1), strict=True))
        of_users = events["user"].replace_strict(number, return_dtype=pl.Int64).to_numpy()
        of_items = events["item"].replace_strict(row, return_dtype=pl.Int32).to_numpy()
        before = np.repeat(np.arange(len(self.users)), self.events.lengths)
        owners = np.concatenate([before, of_users])
        order = np.argsort(owners, kind="stable")  # a window is later than all before it
        values = np.concatenate([self.events.values, of_items])[order]
        seen = np.concatenate([self.seen, np.zeros(len(users) - len(self.users), np.int64)])
        seen[of_users] = window
        return Served(
            window, catalogue, users, seen, Ragged(values, offsets_of(np.bincount(owners, minlength=len(users))))
        )

    def _with(self, fresh: pl.DataFrame) -> pl.DataFrame:
        """The catalogue with further records; numbers and dates beside text become text."""
        for name in set(fresh.columns) & set(self.catalogue.columns):
            before, now = _kind(self.catalogue.schema[name]), _kind(fresh.schema[name])
            fits = before == now or "nothing" in (before, now) or {before, now} in _JOINED
            if not fits:
                raise DataError(
                    f"column {name!r} of its items holds {now}, and {before} in the windows before: give it what it "
                    "held, or another name."
                )
        try:
            return pl.concat([self.catalogue, fresh], how="diagonal_relaxed")
        except pl.exceptions.PolarsError as error:
            raise DataError(f"its items cannot be joined to those of the windows before: {error}") from error

    def forgetting(self, windows: int, history: int) -> Served:
        """Without users and items that have no event in the last `windows`, and with each user's last `history` events;
        0 forgets nothing. Events of forgotten items go too."""
        state = self
        if windows:
            oldest = self.window - windows + 1
            items = (self.catalogue[_SEEN] >= oldest).to_numpy()
            rows = np.concatenate([[0], np.cumsum(items) * items]).astype(np.int32)
            users = np.flatnonzero(self.seen >= oldest)
            kept = self.events.take(users)
            owners, values = np.repeat(np.arange(len(users)), kept.lengths), rows[kept.values]
            there = values > 0
            state = replace(
                self,
                catalogue=self.catalogue.filter(pl.Series(items)),
                users=self.users.gather(users),
                seen=self.seen[users],
                events=Ragged(values[there], offsets_of(np.bincount(owners[there], minlength=len(users)))),
            )
        if history:
            lengths = np.minimum(state.events.lengths, history)
            stops = state.events.offsets[1:]
            offsets = offsets_of(lengths)
            source = np.arange(offsets[-1]) + np.repeat(stops - offsets[1:], lengths)
            state = replace(state, events=Ragged(state.events.values[source], offsets))
        return state

    def write(self, workdir: Path, fingerprint: str, title_column: str) -> Path:
        """Writes the state, and makes it the current one; the one before it stays, older ones are removed.

        Args:
            workdir: of the stream.
            fingerprint: of the stream, the same for all its windows.
            title_column: column that people read.
        """
        from mmrec_jax.data.builder import write_histories  # tfds takes most of a second to import

        folder = workdir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        unfinished, finished = folder / f".{self.window:06d}", folder / f"{self.window:06d}"
        for leftover in folder.glob(".*"):
            _remove(leftover)
        unfinished.mkdir()
        self.catalogue.write_parquet(unfinished / CATALOGUE)
        pl.DataFrame({"user": self.users, _SEEN: self.seen}).write_parquet(unfinished / USERS)
        nothing = Ragged(np.zeros(0, np.int32), np.zeros(len(self.users) + 1, np.int64))
        write_histories(unfinished, {"train": self.events, "valid": nothing, "test": nothing})
        manifest = {
            "fingerprint": fingerprint,
            "made_from": {"config": {"title_column": title_column}},
            "events": {"train": len(self.events.values), "valid": 0, "test": 0},
            "report": {
                "layout": "stream",
                "steps": [{"step": f"window {self.window}", "interactions": len(self.events.values)}],
                "skipped": {},
                "split": {"kind": "none: a stream holds nothing out"},
                "candidates": f"{len(self.catalogue)} items",
                "window": self.window,
            },
        }
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        sync_all(unfinished)
        if finished.is_dir():  # of a run that was killed before the link was moved
            _remove(finished)
        unfinished.rename(finished)
        sync(folder)
        link = folder / f".{CURRENT}"
        link.symlink_to(finished.name)
        os.replace(link, folder / CURRENT)
        sync(folder)
        # The one before stays too: somebody may be reading it.
        for path in sorted(folder.glob("[0-9]*"))[:-2]:
            _remove(path)
        return folder / CURRENT


def current(workdir: Path) -> PreparedData:
    """The newest state as prepared data.

    Raises:
        DataError: there is none, or it is damaged.
    """
    return open_prepared((workdir / FOLDER / CURRENT).resolve())


def read(workdir: Path) -> Served:
    """The newest state; an empty one where there is none.

    Raises:
        DataError: it is damaged.
    """
    if not (workdir / FOLDER / CURRENT).exists():
        return Served.empty()
    prepared = current(workdir)
    users = pl.read_parquet(prepared.directory / USERS)
    return Served(prepared.report["window"], prepared.catalogue, users["user"], users[_SEEN].to_numpy(), prepared.train)


def _kind(dtype: pl.DataType) -> str:
    """What a column holds, in a word."""
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return "text"
    if dtype.is_numeric() or dtype == pl.Boolean:
        return "numbers"
    if dtype.is_temporal():
        return "dates"
    if dtype in (pl.List, pl.Array):
        return "lists"
    return {pl.Null: "nothing", pl.Binary: "bytes", pl.Struct: "records"}.get(dtype.base_type(), str(dtype))


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)
