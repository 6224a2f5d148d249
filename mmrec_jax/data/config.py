"""The data part of a run's config."""

from __future__ import annotations

from dataclasses import dataclass

from mmrec_jax.errors import ConfigError
from mmrec_jax.files import check_local

LAYOUTS = ("auto", "tables", "movielens", "sequences", "recbole")

_CHOICES = {
    "layout": LAYOUTS,
    "on_bad_row": ("error", "skip"),
    "repeated_events": ("bad_row", "keep"),
    "candidates": ("log", "catalogue"),
    "split": ("leave_one_out", "temporal"),
}


@dataclass(frozen=True)
class DataConfig:
    """Where the interactions and the catalogue come from, and how they are checked, filtered and split.

    A column name of "" means the layout's own default (see `docs/data.md`).

    Attributes:
        source: a directory, or "sample:NAME" for data that comes with the package.
        layout: how the directory is laid out; "auto" looks at the file names.
        interactions_file, items_file: file names inside `source` where the layout's own do not fit ("" = its
            own).
        user_column, item_column, timestamp_column: columns of the interactions.
        rating_column: column that `min_rating` is about.
        label_column: a column of 0 and 1; events labelled 0 are left out. "" = every event counts.
        catalogue_item_column: the item id in the items file.
        title_column: the catalogue column that people read.
        on_bad_row: "error" names the rows that cannot be used; "skip" leaves them out and counts them.
        repeated_events: whether a second event of the same user, item and time is a bad row, or kept.
        min_rating: events rated lower are left out; None = no threshold.
        user_core, item_core: iterative k-core: least events a user and an item must have; 0 or 1 = off.
        max_length: keep only the last n events of each user, held-out ones included (0 = all of them). Under
            a temporal split it counts training events only.
        candidates: what is numbered and ranked: items of the kept "log", or the whole "catalogue".
        split: "leave_one_out" (last event tests, the one before validates) or "temporal" (two cuts in time).
        valid_fraction, test_fraction: shares of the events after the cuts of a temporal split.
    """

    source: str = "sample:movielens_small"
    layout: str = "auto"
    interactions_file: str = ""
    items_file: str = ""
    user_column: str = ""
    item_column: str = ""
    timestamp_column: str = ""
    rating_column: str = ""
    label_column: str = ""
    catalogue_item_column: str = ""
    title_column: str = "title"
    on_bad_row: str = "error"
    repeated_events: str = "bad_row"
    min_rating: float | None = None
    user_core: int = 5
    item_core: int = 0
    max_length: int = 0
    candidates: str = "log"
    split: str = "leave_one_out"
    valid_fraction: float = 0.1
    test_fraction: float = 0.1

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError("data.source is empty: name a directory, or 'sample:movielens_small'.")
        check_local("data.source", self.source)
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(f"data.{key} is {getattr(self, key)!r}; it must be one of {', '.join(allowed)}.")
        for key in ("user_core", "item_core", "max_length"):
            if getattr(self, key) < 0:
                raise ConfigError(f"data.{key} is {getattr(self, key)}; it must be 0 (off) or more.")
        if self.max_length in (1, 2):
            raise ConfigError(
                f"data.max_length={self.max_length} leaves no training event beside the two that are held "
                "out: use 3 or more, or 0 for no limit."
            )
        if self.split == "temporal":
            valid, test = self.valid_fraction, self.test_fraction
            if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
                raise ConfigError(
                    f"data.valid_fraction={valid} and data.test_fraction={test} must both lie between 0 and "
                    "1 and sum to less than 1, so that training keeps a part."
                )
