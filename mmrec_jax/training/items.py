"""Item vectors of a catalogue: what an item encoder is to a task, and the encoders of `systems/` over its tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from mmrec_jax.live.catalogue import LiveFrozen
from mmrec_jax.store.table import StateTable
from mmrec_jax.systems.registry import IDS, STATES
from mmrec_jax.types import LOSSES, METRICS, TRAINING, AddedTerms, HiddenStates, ItemVectors, Params

MEASURED = 4096  # items: the mean of as many lies within 2% of the spread


@struct.dataclass
class SequentialFrozen:
    """What the task reads and never trains.

    Attributes:
        states: hidden states of the catalogue, those of live modalities aside; None for encoders by id.
        log_popularity: log of each catalogue row's share of the training events.
        live: backbones that are run in the step; None where all states lie in the table.
        rows: of the catalogue, where the arrays have further ones at their end so that a mesh divides them; 0 where
            they have none.
    """

    states: StateTable | None
    log_popularity: Float[Array, " row"]
    live: LiveFrozen | None = None
    rows: int = struct.field(pytree_node=False, default=0)

    @property
    def num_rows(self) -> int:
        """Items of the catalogue plus the padding row."""
        return self.rows or self.log_popularity.shape[0]


class ItemEncoder(Protocol):
    """Item vectors of catalogue rows.

    `CatalogueItems` reads what lies in tables. Where a backbone is run in the step, the task puts the states that it
    gives beside those that were looked up, so that modules of `systems/` need not know.
    """

    def init(self, rng: Array, frozen: Any) -> Params:
        """Parameters of the encoder."""

    def inputs(self, frozen: Any, rows: Int[Array, " item"]) -> Any:
        """What the call reads of catalogue rows; traced into a program of its own, see `task.Task.inputs`."""

    def given(self, states: HiddenStates | None, rows: Int[Array, " item"]) -> Any:
        """`inputs` of rows whose states are there."""

    def __call__(self, params: Params, inputs: Any) -> ItemVectors:
        """Vectors of the items whose `inputs` were looked up before."""

    def train(self, params: Params, inputs: Any, key: Array) -> tuple[ItemVectors, AddedTerms]:
        """The same in a training step, with what the encoder adds to the task's loss and metrics."""


@dataclass(frozen=True)
class CatalogueItems:
    """An item encoder of `systems/` over the catalogue's tables.

    Attributes:
        module: called with what it reads.
        reads: `states`, `ids`, or both, as `systems.System` says.
    """

    module: nn.Module
    reads: tuple[str, ...] = (STATES,)

    def init(self, rng: Array, frozen: SequentialFrozen) -> Params:
        """Parameters of the module for the table's modalities and widths; what it measures, it measures on at most
        `MEASURED` items spread over the catalogue.
        """
        whole = frozen.states is None or frozen.states.shards is not None
        items = (frozen.num_rows if whole or frozen.states is None else frozen.states.num_rows) - 1
        rows = np.linspace(1, items, min(items, MEASURED)).astype(np.int32)
        return self.module.init(rng, *self.inputs(frozen, jnp.asarray(rows)))["params"]

    def inputs(self, frozen: SequentialFrozen, rows: Int[Array, " item"]) -> tuple:
        """Arguments of the module: states and rows, or one of them."""
        return self.given(None if frozen.states is None else frozen.states.rows(rows), rows)

    def given(self, states: HiddenStates | None, rows: Int[Array, " item"]) -> tuple:
        """The same of states that are there."""
        found = {STATES: states, IDS: rows}
        return tuple(found[kind] for kind in self.reads)

    def __call__(self, params: Params, inputs: tuple) -> ItemVectors:
        """Encodes."""
        vectors = self.module.apply({"params": params}, *inputs)
        assert isinstance(vectors, ItemVectors)
        return vectors

    def train(self, params: Params, inputs: tuple, key: Array) -> tuple[ItemVectors, AddedTerms]:
        """Encodes with the key `types.TRAINING`; the terms are what modules sow as `types.LOSSES` and
        `types.METRICS`."""
        vectors, kept = self.module.apply({"params": params}, *inputs, rngs={TRAINING: key}, mutable=[LOSSES, METRICS])
        added = (_sown(kept.get(collection, {})) for collection in (LOSSES, METRICS))
        return vectors, AddedTerms(*({name: sum(values) for name, values in each.items()} for each in added))

    def gates(self, params: Params, inputs: tuple) -> dict[str, tuple[dict[str, Array], ...]]:
        """Gates of each tower: its name -> one dict a block, source -> scalar or one value a row; none for modules
        without."""
        return self.kept("gates", params, inputs)

    def kept(self, collection: str, params: Params, inputs: tuple) -> dict[str, tuple]:
        """What modules sow into a collection: its name -> one entry a call."""
        _, found = self.module.apply({"params": params}, *inputs, mutable=[collection])
        return _sown(found.get(collection, {}))


def _sown(collection: Mapping[str, Any]) -> dict[str, tuple]:
    """What modules kept by `sow`, by the name they gave it, whichever module it was."""
    found: dict[str, tuple] = {}
    for name, value in collection.items():
        for each, values in ({name: value} if isinstance(value, tuple) else _sown(value)).items():
            found[each] = found.get(each, ()) + values
    return found
