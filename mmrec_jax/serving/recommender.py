"""A finished model in use: top-k lists, item vectors, new items, explanations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Float

from mmrec_jax.errors import ConfigError, DataError, MissingModalityError, UnknownItemError
from mmrec_jax.evaluation.topk import check_k, top_items
from mmrec_jax.serving.recommendations import catalogue_rows, recommendations, user_histories

if TYPE_CHECKING:
    from mmrec_jax.modes.run import Run

_NAMED = 5  # unknown items named in a message


class Recommender:
    """Recommends items of a catalogue from histories of item ids.

    Attributes:
        item_ids: of the catalogue, in row order; row 0 is padding.
        skipped: unknown items left out of the histories of the last call to `recommend`.
    """

    def __init__(self, run: Run, params: dict) -> None:
        """Encodes the run's catalogue with the given parameters."""
        from mmrec_jax.training.scorer import SequentialScorer

        self._run, self._params = run, params
        self._scorer = SequentialScorer(run.task, params, run.frozen)
        self.item_ids = np.asarray(run.data.item_ids)
        self._titles = np.asarray(run.data.titles(np.arange(len(self.item_ids))))
        self._rows = {str(item): row for row, item in enumerate(self.item_ids) if row}
        weights = self._scorer.encoded.weights
        self._weights = None if weights is None else np.asarray(weights)
        self._gates = self._gates_of(run.frozen, np.arange(len(self.item_ids), dtype=np.int32))
        self.skipped = 0

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
        from mmrec_jax.modes.run import CONFIG_FILE, open_run

        directory = Path(checkpoint)
        if not (directory / CONFIG_FILE).exists():
            directory = directory.parent
        return cls.of_run(open_run(None, str(directory)), which)

    @classmethod
    def of_run(cls, run: Run, which: str = "best") -> Recommender:
        """The recommender of an opened run."""
        from mmrec_jax.training import load_params

        wanted = {key: value for key, value in run.description().items() if key != "info"}
        return cls(run, load_params(run.workdir, which, wanted)[0])

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
            on_unknown_item: `error` or `skip` (and count in `skipped`) ids that the catalogue lacks; None is what the
                run's config says.

        Returns:
            Columns query, rank (from 1), item, title, score and `weight_<modality>`; best first. A list is shorter
            than k where the user has seen nearly everything.

        Raises:
            ConfigError: k is larger than the catalogue; both or none of histories and users.
            UnknownItemError: a history has unknown items and they are an error, or only unknown ones.
            DataError: a user is unknown, or a history is empty.
        """
        if (histories is None) == (users is None):
            raise ConfigError("recommend takes either histories or users.")
        check_k(k, len(self.item_ids) - 1)
        if histories is not None:
            given = histories if isinstance(histories, Mapping) else {str(i): h for i, h in enumerate(histories)}
            policy = on_unknown_item or self._run.config.on_unknown_item
            ragged, self.skipped = catalogue_rows(given, self._rows, policy)
            queries = list(given)
        else:
            assert users is not None
            ragged, self.skipped = user_histories(self._run.data, users), 0
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
            each, the gates of its tower's blocks: `backbone`, and `from_<modality>` for the side states it received.

        Raises:
            UnknownItemError: an item is not in the catalogue.
            ConfigError: the model has no modalities to explain by.
        """
        if self._weights is None:
            raise ConfigError(f"{self._run.config.name} knows items by id only: there is nothing to explain by.")
        records = []
        for row in self._known(items):
            for column, name in enumerate(self.modalities):
                gates = {source: values[row].tolist() for source, values in self._gates[name].items()}
                records.append(
                    {
                        "item": str(self.item_ids[row]),
                        "title": str(self._titles[row]),
                        "modality": name,
                        "weight": float(self._weights[row, column]),
                        **gates,
                    }
                )
        return pl.DataFrame(records)

    def add_items(
        self,
        items: pl.DataFrame | Sequence[Mapping[str, Any]],
        media_root: str | Path = ".",
        backbones: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Makes new items part of the catalogue, without training: their media are encoded by the frozen backbones.

        Args:
            items: one record an item, with the column "item" (its id) and those that the modalities' templates name.
            media_root: folder that media paths are relative to.
            backbones: backbone as named in the config -> a directory with its files, where the hub is out of reach.

        Returns:
            Ids of the items added.

        Raises:
            DataError: ids that the catalogue has already, or twice.
            MissingModalityError: items with no readable medium at all; nothing is added then.
        """
        from mmrec_jax import store
        from mmrec_jax.training.scorer import encode_rows
        from mmrec_jax.training.sequential import SequentialFrozen

        config = self._run.config
        if not config.modalities:
            raise ConfigError(f"{config.name} knows items by id only: new items need training.")
        frame = items if isinstance(items, pl.DataFrame) else pl.DataFrame(list(items))
        if "item" not in frame.columns:
            raise DataError("add_items needs the column 'item' with the new items' ids.")
        ids = frame["item"].cast(pl.String).to_list()
        known = [item for item in ids if item in self._rows]
        if known or len(set(ids)) != len(ids):
            raise DataError(f"add_items: ids must be new and distinct; known already: {', '.join(known[:_NAMED])}.")
        with tempfile.TemporaryDirectory() as folder:
            store.extract(config.modalities, frame, media_root, folder, _tolerant(config.extraction), backbones)
            layers = {name: part.layers for name, part in config.modalities.items()}
            table = store.HiddenStateStore.open(folder).table(layers, ids)
        there = np.any([np.asarray(mask) for mask in table.present.values()], axis=0)[1:]
        if not there.all():
            lacking = [item for item, good in zip(ids, there, strict=True) if not good]
            raise MissingModalityError(f"no readable medium for {', '.join(lacking[:_NAMED])}; nothing was added.")
        rows = np.arange(1, len(ids) + 1, dtype=np.int32)
        frozen = SequentialFrozen(table, jnp.zeros(len(ids) + 1))
        encoded = encode_rows(self._run.task, jax.device_put(self._params), frozen, rows)
        self._scorer.extend(encoded)
        new_gates = self._gates_of(frozen, rows)
        self._gates = {
            name: {source: np.concatenate([old, new_gates[name][source]]) for source, old in gates.items()}
            for name, gates in self._gates.items()
        }
        self._weights = np.concatenate([self._weights, np.asarray(encoded.weights)])
        titles = frame[config.data.title_column].to_list() if config.data.title_column in frame.columns else ids
        first = len(self.item_ids)
        self.item_ids = np.concatenate([self.item_ids, np.asarray(ids, dtype=self.item_ids.dtype)])
        self._titles = np.concatenate([self._titles, np.asarray(titles, dtype=self._titles.dtype)])
        self._rows |= {item: first + i for i, item in enumerate(ids)}
        return ids

    def _known(self, items: Iterable[str]) -> np.ndarray:
        items = [str(item) for item in items]
        unknown = [item for item in items if item not in self._rows]
        if unknown:
            raise UnknownItemError(f"not in the catalogue: {', '.join(unknown[:_NAMED])}.")
        return np.array([self._rows[item] for item in items], np.int64)

    def _gates_of(self, frozen, rows: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """Gates of every tower's blocks: modality -> source -> [row, block]."""
        from mmrec_jax.training.scorer import tower_gates

        return tower_gates(self._run.task, self._params, frozen, rows) if frozen.states is not None else {}


def _tolerant(extraction):
    """New items may lack a modality; those that lack all are refused afterwards, by name."""
    from dataclasses import replace

    return replace(extraction, dtype="float32", max_failure_share=1.0, progress=False)
