"""A window's files into the stream: checked, its new items encoded, and copied into the journal."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from mmrec_jax.data.checks import BadRows, check_catalogue, without_dictionary
from mmrec_jax.data.config import DataConfig
from mmrec_jax.data.files import Table, read_items, read_table
from mmrec_jax.data.layouts import Source, source_of
from mmrec_jax.data.readers import read_source
from mmrec_jax.errors import ConfigError, DataError, NotFiniteError
from mmrec_jax.files import write_whole
from mmrec_jax.streaming.arrivals import Arrival, BadWindow
from mmrec_jax.streaming.journal import Entry

if TYPE_CHECKING:
    from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig
    from mmrec_jax.store import HiddenStateStore

_NAMED = 5  # items named in a message
_LAYOUTS = ("auto", "tables", "movielens")


@dataclass(frozen=True)
class Intake:
    """How windows are taken in.

    Attributes:
        data: names of columns, the rating threshold, and what a bad row is.
        modalities: what new items are encoded by.
        extraction: how.
        store: the run's hidden-state store, which grows.
        skip: leave out what cannot be used, and go on, in place of raising.
        attempt: file that says of which window new items are being encoded, of a store that is the run's own: what else
            the store has of new items was left by a window that was refused, or is of items that were forgotten, and
            is made anew. None for a store that serves others too: what it has is used.
    """

    data: DataConfig
    modalities: Mapping[str, ModalityConfig]
    extraction: ExtractionConfig
    store: str
    skip: bool = False
    attempt: Path | None = None

    def __post_init__(self) -> None:
        if not self.modalities:
            raise ConfigError(
                "A stream needs a system that reads the items' media: one by ids only knows nothing of new items."
            )
        if self.data.layout not in _LAYOUTS:
            raise ConfigError(
                f"data.layout={self.data.layout!r}: windows that arrive are tables with a time column: choose one of "
                f"{', '.join(_LAYOUTS)}."
            )

    def read(
        self, arrival: Arrival, accepted: list[Entry], known: Collection[str], known_users: Collection[str]
    ) -> tuple[Entry, pl.DataFrame, pl.DataFrame]:
        """Reads and checks a window and encodes its new items, without taking it in.

        Args:
            arrival: its files.
            accepted: the journal's windows.
            known: ids of the items of earlier windows.
            known_users: ids of their users.

        Returns:
            Its entry for the journal; its events: user, item, time, in order of time; records of its new items.

        Raises:
            BadWindow: it cannot be used: says why, and what to do.
        """
        try:
            return self._read(arrival, accepted, known, known_users)
        except BadWindow:
            raise
        except (DataError, ConfigError, NotFiniteError) as error:
            raise BadWindow(arrival.name, str(error), arrival.digest) from error

    def end_attempt(self) -> None:
        """Lets new items of a window that was refused be encoded anew when it comes again."""
        if self.attempt is not None:
            self.attempt.unlink(missing_ok=True)

    def _read(self, arrival, accepted, known, known_users) -> tuple[Entry, pl.DataFrame, pl.DataFrame]:
        twice = [entry.name for entry in accepted if entry.digest == arrival.digest]
        if twice:
            self._refuse(arrival, f"is window {twice[0]} once more: the same bytes under another name. Remove it.")
        layout = "tables" if self.data.layout == "auto" else self.data.layout
        source = source_of(self.data, layout, arrival.events.parent, arrival.events, None)
        table = read_table(arrival.events)
        columns, times = tuple(table.columns.column_names), _kind_of_times(table, source.timestamp)
        notes = []
        if accepted:
            notes += self._changed(arrival, source, accepted[-1], columns, times)
        settings = replace(self.data, title_column="title", on_bad_row="skip" if self.skip else self.data.on_bad_row)
        read = read_source(source, settings)
        notes += [f"{count} rows left out: {kind}" for kind, count in read.skipped.items()]
        log = read.log
        assert log.times is not None  # a table without times was refused
        order = np.argsort(log.times, kind="stable")
        events = pl.DataFrame(
            {
                "user": log.user_ids.gather(log.users[order]).cast(pl.String),
                "item": read.catalogue["item"].gather(log.items[order]),
                "time": log.times[order],
            }
        )
        if not len(events):
            self._refuse(arrival, "has no event that counts" + (f" ({'; '.join(notes)})." if notes else "."))
        first, last = float(events["time"][0]), float(events["time"][-1])
        if accepted and first < (before := accepted[-1]).last:
            early = int((events["time"] < before.last).sum())
            self._refuse(
                arrival,
                f"is out of order: {early} of its {len(events)} events are earlier than the end of window "
                f"{before.name} (times {first:g} and {before.last:g}). Windows come in the order of their names, and "
                "their times must not overlap.",
            )
        items, lacking = self._items(arrival, source, table, events, known)
        if lacking:
            share = f"{len(lacking)} items have no medium of {', '.join(self.modalities)}: {_some(lacking)}"
            if not self.skip:
                self._refuse(
                    arrival, f"{share}. Describe them, or leave their events out (service.on_bad_window='skip')."
                )
            events = events.filter(~pl.col("item").is_in(lacking))
            notes.append(f"{share}; their events are left out")
            if not len(events):
                self._refuse(arrival, f"no event is left: {share}.")
        users = events["user"].unique()
        if len(known_users) and not users.is_in(list(known_users)).any():
            notes.append(f"all {len(users)} users are new: it is learned from as any other window")
        entry = Entry(
            name=arrival.name,
            digest=arrival.digest,
            number=len(accepted) + 1,
            notes=tuple(notes),
            events=len(events),
            users=len(users),
            items=events["item"].n_unique(),
            new_items=len(items),
            first=first,
            last=last,
            columns=columns,
            times=times,
            missing=self._missing(events),
        )
        return entry, events, items

    def _missing(self, events: pl.DataFrame) -> dict[str, float]:
        """Share of the events whose item lacks each modality."""
        from mmrec_jax.store import HiddenStateStore
        from mmrec_jax.store.store import PRESENT

        store, counts = HiddenStateStore.open(self.store), events["item"].value_counts()
        rows = store.rows(counts["item"].to_list())
        return {
            name: float(counts["count"].to_numpy() @ (store.status(name)[rows] != PRESENT) / len(events))
            for name in self.modalities
        }

    def _refuse(self, arrival: Arrival, message: str) -> None:
        raise BadWindow(arrival.name, message, arrival.digest)

    def _changed(
        self, arrival: Arrival, source: Source, before: Entry, columns: tuple[str, ...], times: str
    ) -> list[str]:
        """What is odd about the columns; refuses those that cannot be gone on with."""
        lost = [name for name in before.columns if name not in columns]
        new = [name for name in columns if name not in before.columns]
        used = {source.user, source.item, source.timestamp, *self._described(before.columns)}
        text = "; ".join(
            f"{what} {', '.join(names)}" for what, names in (("without", lost), ("with the new", new)) if names
        )
        if used & set(lost):
            self._refuse(arrival, f"has other columns than window {before.name}: {text}. It has {', '.join(columns)}.")
        if times != before.times:
            self._refuse(
                arrival, f"has {times} in its column {source.timestamp!r}, and window {before.name} has {before.times}."
            )
        return [f"other columns than window {before.name}: {text}"] if text else []

    def _described(self, columns: Collection[str]) -> set[str]:
        """Those of the columns that the modalities are made of."""
        return {name for part in self.modalities.values() for name in columns if name in _columns_of(part)}

    def _items(
        self, arrival: Arrival, source: Source, table: Table, events: pl.DataFrame, known: Collection[str]
    ) -> tuple[pl.DataFrame, list[str]]:
        """Records of new items that occur, encoded, and ids of those that lack all modalities, which are left out."""
        occurring = events["item"].unique(maintain_order=True)
        new = occurring.filter(~occurring.is_in(list(known)))
        described = self._records(arrival, source, table)
        lacking = new.filter(~new.is_in(described["item"].to_list())).to_list()
        frame = described.filter(pl.col("item").is_in(new.to_list()))
        if not len(frame):
            return frame, lacking
        self._begin_attempt(frame["item"].to_list(), arrival.digest)
        none = ~self._encoded(frame, arrival.events.parent)
        lacking += frame["item"].filter(pl.Series(none)).to_list()
        return frame.filter(pl.Series(~none)), lacking

    def _records(self, arrival: Arrival, source: Source, table: Table) -> pl.DataFrame:
        """Records of the items file, or the other columns of the events, the first of each item; the id in "item"."""
        bad = BadRows()
        if arrival.items is not None:
            frame = check_catalogue(read_items(arrival.items, source.catalogue_item), source.catalogue_item, bad)
            bad.settle("skip" if self.skip else self.data.on_bad_row)
            return frame
        needed = set().union(*map(_columns_of, self.modalities.values())) - {"item"}
        columns = table.columns.drop_columns([source.user, source.timestamp])
        if needed and not needed & set(columns.column_names):
            return pl.DataFrame({"item": pl.Series([], dtype=pl.String)})
        kept = Table(table.name, columns, table.first_row, table.malformed, table.blank)
        return check_catalogue(kept, source.item, bad)  # an item's later rows are no mistake here

    def _begin_attempt(self, ids: list[str], digest: str) -> None:
        """Lets items of the run's own store be encoded anew, unless the service was killed while it encoded the same
        window."""
        if self.attempt is None or (self.attempt.exists() and self.attempt.read_text(encoding="utf-8") == digest):
            return
        from mmrec_jax.store import HiddenStateStore
        from mmrec_jax.store.store import PENDING

        store = HiddenStateStore.create(self.store, ids)
        rows = store.rows(ids)
        for name in store.modalities:
            _set_pending(store, name, rows[store.status(name)[rows] != PENDING])
        self.attempt.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.attempt, digest)

    def _encoded(self, frame: pl.DataFrame, media_root: Path) -> Bool[np.ndarray, " item"]:
        """Encodes items into the store; whether each has any modality."""
        from mmrec_jax.store import HiddenStateStore, extract
        from mmrec_jax.store.store import ABSENT, PRESENT

        # Items may lack a modality; those that lack all are told by name.
        tolerant = replace(self.extraction, max_failure_share=1.0, progress=False)
        ids = frame["item"].to_list()
        store = HiddenStateStore.create(self.store, ids)
        rows = store.rows(ids)
        for name in store.modalities:
            # Items that came without any medium before, and were left out, may have one now.
            _set_pending(store, name, rows[store.status(name)[rows] == ABSENT])
        extract(self.modalities, frame, media_root, self.store, tolerant)
        store.refresh()
        return np.any([store.status(name)[store.rows(ids)] == PRESENT for name in self.modalities], axis=0)


def _set_pending(store: HiddenStateStore, name: str, rows: Int[np.ndarray, " item"]) -> None:
    from mmrec_jax.store.store import PENDING

    if len(rows):
        info = store.modalities[name]
        store.write(
            name, rows, np.zeros((len(rows), len(info.layers), info.width)), np.full(len(rows), PENDING, np.uint8)
        )


def _columns_of(modality: ModalityConfig) -> set[str]:
    from mmrec_jax.backbones.text import template_columns

    template = modality.template or modality.path_template
    return set(template_columns(template)[1]) if template else {modality.column}


def _kind_of_times(table: Table, column: str) -> str:
    """`numbers` or `dates`; "" where there is no such column."""
    import pyarrow as pa

    if column not in table.columns.column_names:
        return ""
    values = without_dictionary(table.columns[column])
    if not pa.types.is_string(values.type) and not pa.types.is_large_string(values.type):
        return "dates" if pa.types.is_temporal(values.type) else "numbers"
    return "numbers" if pl.Series(values).cast(pl.Float64, strict=False).count() else "dates"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
