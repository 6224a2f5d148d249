"""A finished model in use: top-k lists, item vectors, new items, explanations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from absl import logging
from jaxtyping import Float, Int

from mmrec_jax.backbones.config import template_columns
from mmrec_jax.errors import ConfigError, DataError, MissingModalityError, StoreMismatchError, UnknownItemError
from mmrec_jax.evaluation.topk import check_k, top_items
from mmrec_jax.serving.recommendations import catalogue_rows, recommendations, user_histories

if TYPE_CHECKING:
    from mmrec_jax.modes.run import Run
    from mmrec_jax.store.store import HiddenStateStore
    from mmrec_jax.store.table import StateTable
    from mmrec_jax.training.items import SequentialFrozen
    from mmrec_jax.types import Params

_NAMED = 5  # items named in a message


class Recommender:
    """Recommends items of a catalogue from histories of item ids.

    Attributes:
        item_ids: of the catalogue, in row order; row 0 is padding.
        skipped: unknown items left out of the histories of the last call to `recommend`.
        left_out: names of its histories that held no known item, and have no list.
        failed: modality -> item -> why its medium could not be read, of the last call to `add_items`.
    """

    def __init__(self, run: Run, params: Params) -> None:
        """Encodes the run's catalogue with the given parameters, on one device."""
        from mmrec_jax.training.scorer import SequentialScorer

        run = run.on_one_device()
        self._run, self._params = run, params
        self._scorer = SequentialScorer(run.task, params, run.frozen)
        self.item_ids = np.asarray(run.data.item_ids, dtype=object)
        self._titles = np.asarray(run.data.titles(np.arange(len(self.item_ids))), dtype=object)
        self._rows = dict(zip(self.item_ids[1:].tolist(), range(1, len(self.item_ids)), strict=True))
        weights = self._scorer.encoded.weights
        self._weights = None if weights is None else np.asarray(weights)
        # The catalogue of the data and each lot of added items have tables of their own: (first row, table).
        self._tables: list[tuple[int, SequentialFrozen]] = [(0, self._scorer.frozen)]
        self.skipped = 0
        self.left_out: list[str] = []
        self.failed: dict[str, dict[str, str]] = {}

    @classmethod
    def load(cls, checkpoint: str | Path, which: str = "best") -> Recommender:
        """Opens a finished run.

        Args:
            checkpoint: the run's workdir, or its folder of checkpoints.
            which: `best` or `last`.

        Raises:
            CheckpointError: no usable checkpoint, or one of another system or catalogue.
            ConfigError: the directory is no workdir of a run.
        """
        from mmrec_jax.modes.run import open_run
        from mmrec_jax.modes.workdir import CONFIG_FILE

        directory = Path(checkpoint)
        inside = not (directory / CONFIG_FILE).exists() and (directory.parent / CONFIG_FILE).exists()
        return cls.of_run(open_run(None, directory.parent if inside else directory), which)

    @classmethod
    def of_run(cls, run: Run, which: str = "best") -> Recommender:
        """The recommender of an opened run."""
        run = run.on_one_device()
        return cls(run, run.parameters(which))

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the fusion weights."""
        return self._run.task.modalities

    def recommend(
        self,
        histories: Sequence[Sequence[str]] | Mapping[str, Sequence[str]] | None = None,
        k: int = 10,
        exclude_seen: bool = True,
        *,
        users: Sequence[str] | None = None,
        on_unknown_item: str | None = None,
    ) -> pl.DataFrame:
        """The k best items for each history.

        Args:
            histories: lists of item ids in time order, or query name -> such a list.
            k: items a list.
            exclude_seen: leave out items of the history.
            users: in place of histories: ids of users of the training data, with all their known events.
            on_unknown_item: `error` or `skip` (and count in `skipped`) ids that the catalogue lacks; histories that
                hold nothing else are then named in `left_out`. None is what the run's config says.

        Returns:
            Columns query, rank (from 1), item, title, score and `weight_<modality>`; best first. A list is shorter
            than k where the user has seen nearly everything.

        Raises:
            ConfigError: k is larger than the catalogue; both or none of histories and users.
            UnknownItemError: a history has unknown items and they are an error, or no history has known ones.
            DataError: a user is unknown, or a history is empty.
        """
        if (histories is None) == (users is None):
            raise ConfigError("recommend takes either histories or users.")
        if isinstance(users, str) or any(isinstance(history, str) for history in _values(histories)):
            raise DataError("recommend takes a list of histories, each a list of item ids, or a list of user ids.")
        check_k(k, len(self.item_ids) - 1)
        if histories is not None:
            given = histories if isinstance(histories, Mapping) else {str(i): h for i, h in enumerate(histories)}
            policy = on_unknown_item or self._run.config.on_unknown_item
            ragged, self.skipped, self.left_out = catalogue_rows(given, self._rows, policy)
            absent = set(self.left_out)
            queries = [name for name in given if name not in absent]
        else:
            assert users is not None
            ragged, self.skipped, self.left_out = user_histories(self._run.data, users), 0, []
            queries = [str(user) for user in users]
        length = self._run.config.model.length
        items, scores = top_items(
            lambda numbers: self._scorer.user_vectors(ragged.last(np.asarray(numbers), length)),
            len(queries),
            self._scorer.item_vectors(),
            k,
            seen=ragged if exclude_seen else None,
        )
        weights = {} if self._weights is None else dict(zip(self.modalities, self._weights.T, strict=True))
        return recommendations(queries, items, scores, item_ids=self.item_ids, titles=self._titles, weights=weights)

    def embed_items(self, items: Iterable[str] | None = None) -> Float[np.ndarray, "item width"]:
        """Vectors of items to score with; all of the catalogue in row order where none are named.

        Raises:
            UnknownItemError: an item is not in the catalogue.
        """
        vectors = np.asarray(self._scorer.item_vectors())
        return vectors[1:] if items is None else vectors[self._known(items)]

    def explain(self, items: Iterable[str]) -> pl.DataFrame:
        """Where the vectors of items come from.

        Returns:
            One record an item and modality: item, title, modality, weight (its share in the fused vector) and, a list
            each, the gates of its tower's blocks: `backbone`, and `from_<modality>` for the side states it received;
            null where the tower has no such source.

        Raises:
            UnknownItemError: an item is not in the catalogue.
            ConfigError: the model has no modalities to explain by.
        """
        if self._weights is None:
            raise ConfigError(f"{self._run.config.name} knows items by id only: there is nothing to explain by.")
        rows = self._known(items)
        gates = self._gates(rows)
        frames = [
            pl.DataFrame(
                {
                    "order": np.arange(len(rows)),
                    "item": pl.Series(self.item_ids[rows].tolist(), dtype=pl.String),
                    "title": pl.Series(self._titles[rows].tolist(), dtype=pl.String),
                    "modality": pl.repeat(name, len(rows), dtype=pl.String, eager=True),
                    "weight": self._weights[rows, column],
                    **{
                        source: pl.Series(values, dtype=pl.Array(pl.Float32, values.shape[1])).cast(pl.List(pl.Float32))
                        for source, values in gates.get(name, {}).items()
                    },
                }
            )
            for column, name in enumerate(self.modalities)
        ]
        return pl.concat(frames, how="diagonal").sort("order", maintain_order=True).drop("order")

    def add_items(
        self,
        items: pl.DataFrame | Sequence[Mapping[str, Any]],
        media_root: str | Path = ".",
        backbones: Mapping[str, str] | None = None,
        *,
        allow_other_weights: bool = False,
    ) -> list[str]:
        """Makes new items part of the catalogue, without training: their media are encoded by the frozen backbones.

        The backbones are loaded anew at each call: add many items at once. Media that cannot be read are warned of and
        kept in `failed`; their items are added without them.

        Args:
            items: one record an item: its id in the column "item" (or as the catalogue's file calls it), and the
                columns that the modalities' templates name; those of a modality that no item has may be absent.
            media_root: folder that media paths are relative to.
            backbones: backbone as named in the config -> a directory with its files, where the hub is out of reach.
            allow_other_weights: take backbones whose weights file is another than the one that the catalogue was
                encoded with, such as the same weights saved in another precision.

        Returns:
            Ids of the items added.

        Raises:
            DataError: ids that the catalogue has already, twice, or none.
            StoreMismatchError: a backbone or its preprocessing is another than the one the model was trained with.
            MissingModalityError: items with no readable medium at all; nothing is added then.
        """
        from mmrec_jax.training.scorer import encode_rows

        config = self._run.config
        if not config.modalities:
            raise ConfigError(f"{config.name} knows items by id only: new items need training.")
        if config.model.add_ids:
            raise ConfigError(f"{config.name} gives each item a vector of its id (add_ids): new items need training.")
        given = items if isinstance(items, pl.DataFrame) else pl.DataFrame(list(items), infer_schema_length=None)
        frame = self._new_items(given)
        ids = frame["item"].to_list()
        frozen = self._encoded_by_backbones(frame, Path(media_root), backbones, allow_other_weights)
        encoded = encode_rows(
            self._run.task, jax.device_put(self._params), frozen, np.arange(1, len(ids) + 1, dtype=np.int32)
        )
        self._scorer.extend(encoded)
        self._tables.append((len(self.item_ids), frozen))
        self._weights = np.concatenate([self._weights, np.asarray(encoded.weights)])
        title = config.data.title_column
        titles = frame[title].cast(pl.String).fill_null(frame["item"]) if title in frame.columns else frame["item"]
        self._rows |= dict(zip(ids, range(len(self.item_ids), len(self.item_ids) + len(ids)), strict=True))
        self.item_ids = np.concatenate([self.item_ids, np.asarray(ids, dtype=object)])
        self._titles = np.concatenate([self._titles, np.asarray(titles.to_list(), dtype=object)])
        return ids

    def _new_items(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with the ids as text in "item" and the columns of modalities that it lacks; refuses ids that cannot
        be new."""
        own_name = self._run.config.data.catalogue_item_column
        if "item" not in frame.columns and own_name in frame.columns:
            frame = frame.rename({own_name: "item"})
        if "item" not in frame.columns:
            raise DataError(
                f"add_items needs the new items' ids in a column 'item'; there is {', '.join(frame.columns) or 'none'}."
            )
        frame = frame.with_columns(pl.col("item").cast(pl.String))
        ids = frame["item"]
        for what, bad in (
            ("empty", ids.is_null() | (ids == "")),
            ("there twice", ids.is_duplicated()),
            ("in the catalogue already", ids.is_in(list(self._rows))),
        ):
            if bad.any():
                culprits = ids.filter(bad).unique(maintain_order=True).cast(pl.String).fill_null("(none)").to_list()
                raise DataError(f"add_items: ids that are {what}: {_some(culprits)}. Ids must be new and distinct.")
        if not len(frame):
            raise DataError("add_items was given no item.")
        for part in self._run.config.modalities.values():
            columns = template_columns(part.source)[1]
            if not set(columns) & set(frame.columns):  # where a part of them is there, the others are a mistake
                frame = frame.with_columns(pl.lit(None, pl.String).alias(column) for column in columns)
        return frame

    def _encoded_by_backbones(
        self, frame: pl.DataFrame, media_root: Path, backbones: Mapping[str, str] | None, allow_other_weights: bool
    ) -> SequentialFrozen:
        """What the task reads of new items: as the run's own store was made, and by its live backbones."""
        from mmrec_jax import experiment
        from mmrec_jax.store.table import StateTable
        from mmrec_jax.training.items import SequentialFrozen

        run, self.failed = self._run, {}
        # New items may lack a modality; those that lack all are refused below, by name.
        tolerant = replace(run.config.extraction, max_failure_share=1.0, progress=False)
        config = replace(run.config, extraction=tolerant)
        table = StateTable({}, {}, {}, complete=True)
        with tempfile.TemporaryDirectory() as folder:
            if run.store is not None:
                table = self._stored(frame, media_root, folder, tolerant, backbones, allow_other_weights)
            frozen = SequentialFrozen(table, jnp.zeros(len(frame) + 1))
            if run.live is not None:
                catalogue = experiment.live_catalogue(config, run.live, frame, media_root, Path(folder) / "inputs", "")
                self.failed |= {name: dict(part.failures) for name, part in catalogue.inputs.items() if part.failures}
                live = run.live.frozen(catalogue)
                frozen = run.task.computed(jax.device_put(self._params), replace(frozen, live=live))
        assert frozen.states is not None
        there = np.any([np.asarray(mask) for mask in frozen.states.present.values()], axis=0)[1:]
        if not there.all():
            lacking = frame["item"].filter(~pl.Series(there)).to_list()
            raise MissingModalityError(
                f"{len(lacking)} items have none of the modalities {', '.join(config.modalities)}: {_some(lacking)}. "
                f"Nothing was added; media are looked for in {media_root}."
            )
        for name, reasons in self.failed.items():
            examples = "; ".join(f"{item}: {reason}" for item, reason in islice(reasons.items(), _NAMED))
            logging.warning(
                "add_items: the media of %d of %d items cannot be read, and they are added without %s (%s). Media are "
                "looked for in %s.",
                len(reasons),
                len(frame),
                name,
                examples,
                media_root,
            )
        return frozen

    def _stored(self, frame, media_root, folder, limits, backbones, allow_other_weights) -> StateTable:
        """States of new items, of the type and by the backbones of the run's own store."""
        from mmrec_jax import store

        own, wanted = self._run.store, self._run.config.cached
        assert own is not None  # a config with cached modalities has one
        kinds = {info.dtype for info in own.modalities.values()}
        dtype = kinds.pop() if len(kinds) == 1 else "float32"
        reports = store.extract(wanted, frame, media_root, folder, replace(limits, dtype=dtype), backbones)
        self.failed |= {
            name: dict(islice(report.reasons.items(), report.failed))
            for name, report in reports.items()
            if report.failed
        }
        made = store.HiddenStateStore.open(folder)
        _check_same_making(made, own, allow_other_weights)
        return made.table({name: part.layers for name, part in wanted.items()}, frame["item"].to_list())

    def _known(self, items: Iterable[str]) -> Int[np.ndarray, " item"]:
        """Catalogue rows of item ids."""
        names = list(map(str, items))
        rows = np.fromiter(map(self._rows.get, names, repeat(0)), np.int64, len(names))
        if not rows.all():
            unknown = [names[place] for place in np.flatnonzero(rows == 0)]
            raise UnknownItemError(f"{len(unknown)} items are not in the catalogue: {_some(unknown)}.")
        return rows

    def _gates(self, rows: Int[np.ndarray, " item"]) -> dict[str, dict[str, Float[np.ndarray, "item block"]]]:
        """Gates of every tower's blocks for catalogue rows: modality -> source -> [item, block]."""
        from mmrec_jax.training.scorer import tower_gates

        firsts = np.array([first for first, _ in self._tables])
        of_table = np.searchsorted(firsts, rows, side="right") - 1
        result: dict[str, dict[str, np.ndarray]] = {}
        for number in np.unique(of_table):
            places = np.flatnonzero(of_table == number)
            first, frozen = self._tables[number]
            local = rows[places] - (first - 1 if first else 0)  # row 0 of each table is padding
            padded = np.zeros(1 << (len(places) - 1).bit_length(), np.int32)  # few sizes: few compiled programs
            padded[: len(places)] = local
            for name, sources in tower_gates(self._run.task, self._params, frozen, padded).items():
                for source, values in sources.items():
                    target = result.setdefault(name, {}).setdefault(source, np.zeros((len(rows), values.shape[1])))
                    target[places] = values[: len(places)]
        return result


def _check_same_making(made: HiddenStateStore, own: HiddenStateStore, allow_other_weights: bool) -> None:
    """Refuses states of new items that were made in another way than those of the catalogue."""
    free = {"backbone", "revision"} | ({"weights_sha256"} if allow_other_weights else set())
    unequal = [
        f"{name}: {key} is {own.modalities[name].fingerprint.get(key)!r} for the catalogue and {value!r} now"
        for name, info in made.modalities.items()
        for key, value in info.fingerprint.items()
        if key not in free and own.modalities[name].fingerprint.get(key) != value
    ]
    if unequal:
        raise StoreMismatchError(
            f"new items would be encoded in another way than the catalogue: {'; '.join(unequal)}. Give the directory "
            "of the backbone that the store was made with in `backbones`, or allow_other_weights."
        )


def _values(histories: Sequence[Sequence[str]] | Mapping[str, Sequence[str]] | None) -> Iterable[Sequence[str]]:
    return histories.values() if isinstance(histories, Mapping) else histories or ()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
