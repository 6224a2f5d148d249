"""Prepared data: the id maps, the catalogue and each user's events, opened from a directory."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, Int32, Int64

from mmrec_jax.data.ragged import Ragged, joined
from mmrec_jax.errors import DataError, EmptySplitError

MANIFEST = "manifest.json"
CATALOGUE = "catalogue.parquet"
USERS = "users.parquet"


@dataclass(frozen=True)
class Examples:
    """What is to be predicted, one example a user.

    Attributes:
        users: user numbers.
        histories: item rows of all events before the target, in time order; never empty.
        targets: item row of the held-out event.
        repeat: whether the target occurs in the history already.
        readable: how many of the last events of each history a model may read; None = all. The others are known to the
            evaluation, which leaves them out of the ranking.
    """

    users: Int32[np.ndarray, " example"]
    histories: Ragged
    targets: Int32[np.ndarray, " example"]
    repeat: Bool[np.ndarray, " example"]
    readable: Int64[np.ndarray, " example"] | None = None

    def __len__(self) -> int:
        return len(self.users)

    def inputs(self, chosen: Int[np.ndarray, " chosen"], length: int) -> Int32[np.ndarray, "chosen {length}"]:
        """The last `length` events that a model reads of the chosen histories, padded with 0 on the left."""
        events = self.histories.last(chosen, length)
        if self.readable is None:
            return events
        return np.where(np.arange(length) >= length - self.readable[chosen][:, None], events, np.int32(0))


@dataclass(frozen=True)
class PreparedData:
    """Interactions and catalogue, ready for training. Items are rows 1..num_items, row 0 is padding.

    Attributes:
        directory: where it lies.
        fingerprint: sha256 of the config and the source files it was made from.
        report: JSON-able: counts after each step, bad rows skipped, what the split did.
        item_ids: item id of each row; "" in row 0.
        user_ids: id of each user.
        catalogue: one record an item, in row order (row 1 first): the id as "item" and the source's other
            columns.
        title_column: the column that people read.
        train, valid, test: the events of every user in each part, in time order.
    """

    directory: Path
    fingerprint: str
    report: dict[str, Any]
    item_ids: np.ndarray
    user_ids: np.ndarray
    catalogue: pl.DataFrame
    title_column: str
    train: Ragged
    valid: Ragged
    test: Ragged

    @property
    def num_items(self) -> int:
        """Number of items; item arrays have one row more."""
        return len(self.item_ids) - 1

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @functools.cached_property
    def popularity(self) -> Int64[np.ndarray, " item_and_padding"]:
        """How often each row occurs in the training part; 0 for padding."""
        return np.bincount(self.train.values, minlength=self.num_items + 1)

    def examples(self, split: str) -> Examples:
        """The held-out events of "valid" or "test", with what came before.

        Of several held-out events of a user (temporal split), the first is the target. The history of a valid
        example is the training part, that of a test example the training and the validation part. Users
        without a history are left out.

        Raises:
            EmptySplitError: the split holds no example.
        """
        if split not in ("valid", "test"):
            raise ValueError(f"no split {split!r}: examples are in 'valid' and 'test'")
        held_out = self.valid if split == "valid" else self.test
        before = self.train if split == "valid" else joined(self.train, self.valid)
        users = np.flatnonzero((held_out.lengths > 0) & (before.lengths > 0)).astype(np.int32)
        if not len(users):
            raise EmptySplitError(
                f"the {split} split of {self.directory} holds no user with a history and a held-out event "
                f"({self.report['split']['kind']}; {len(held_out.values)} held-out events): keep longer "
                "histories, or change data.split and its fractions."
            )
        histories = before.take(users)
        targets = held_out.values[held_out.offsets[users]]
        row = np.repeat(np.arange(len(users)), histories.lengths)
        seen = np.bincount(row, histories.values == targets[row], minlength=len(users)) > 0
        return Examples(users, histories, targets, seen)

    def titles(self, rows: Int[np.ndarray, " rows"] | list[int]) -> list[str]:
        """Titles of item rows; the item id where an item has none, "" for padding."""
        return self._titles[np.asarray(rows, np.int64)].tolist()

    def history(self, user_id: str) -> Int32[np.ndarray, " events"]:
        """Item rows of all events of a user, held-out ones included, in time order.

        Raises:
            DataError: the prepared data has no such user.
        """
        user = self._user_numbers.get(str(user_id))
        if user is None:
            raise DataError(f"user {user_id!r} is not in {self.directory} ({self.num_users} users).")
        return np.concatenate([part.rows(user) for part in (self.train, self.valid, self.test)])

    def describe(self) -> str:
        """The report in words, a line for each step."""
        report = self.report
        lines = [
            f"{step['step']}: " + ", ".join(f"{count:,} {what}" for what, count in step.items() if what != "step")
            for step in report["steps"]
        ]
        lines += [f"skipped {count:,} bad rows: {kind}" for kind, count in report["skipped"].items()]
        lines += [f"split: {name}: {value}" for name, value in report["split"].items()]
        lines += [f"catalogue: {self.num_items:,} candidates ({report['candidates']})"]
        return "\n".join(lines)

    @functools.cached_property
    def _user_numbers(self) -> dict[str, int]:
        return dict(zip(self.user_ids.tolist(), range(self.num_users), strict=True))

    @functools.cached_property
    def _titles(self) -> np.ndarray:
        titles = self.catalogue["item"]
        if self.title_column in self.catalogue.columns:
            named = self.catalogue[self.title_column].cast(pl.String)
            titles = pl.select(pl.when(named != "").then(named).otherwise(titles)).to_series()
        return np.array(["", *titles.to_list()], dtype=object)


def open_prepared(directory: Path | str) -> PreparedData:
    """Opens a prepared directory, or the only prepared one below it.

    Raises:
        DataError: there is none, there are several, or its files are damaged.
    """
    directory = Path(directory)
    if not (directory / MANIFEST).is_file():
        below = sorted(path.parent for path in directory.glob(f"*/{MANIFEST}"))
        if len(below) != 1:
            raise DataError(
                f"{directory} holds {len(below) or 'no'} prepared data sets "
                f"({', '.join(path.name for path in below)}): give the directory of one."
            )
        directory = below[0]
    from mmrec_jax.data.builder import read_histories  # tfds and grain take most of a second to import

    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        catalogue = pl.read_parquet(directory / CATALOGUE)
        users = pl.read_parquet(directory / USERS)["user"]
        parts = read_histories(directory)
        held = {name: len(part.values) for name, part in parts.items()}
        if held != manifest["events"] or any(len(part) != len(users) for part in parts.values()):
            raise ValueError(f"the records hold {held} events, the manifest says {manifest['events']}")
    except (OSError, ValueError, KeyError, RuntimeError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{directory} is damaged ({error}): remove it, and it is prepared anew.") from error
    return PreparedData(
        directory=directory,
        fingerprint=manifest["fingerprint"],
        report=manifest["report"],
        item_ids=np.array(["", *catalogue["item"].to_list()]),
        user_ids=np.array(users.to_list()),
        catalogue=catalogue,
        title_column=manifest["made_from"]["config"]["title_column"],
        **parts,
    )
