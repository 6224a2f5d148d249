"""The live modalities of a model together: what they train, a batch's states, and those of a whole catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool

from mmrec_jax.live.backbone import LiveBackbone
from mmrec_jax.live.inputs import RawInputs
from mmrec_jax.live.parts import RawBatch
from mmrec_jax.shards import Shards
from mmrec_jax.store.table import StateTable
from mmrec_jax.types import HiddenStates, Params


@dataclass(frozen=True, eq=False)  # compared by identity: it is static in compiled programs
class LiveCatalogue:
    """Raw inputs of a catalogue's items, modality -> inputs."""

    inputs: Mapping[str, RawInputs]

    @property
    def complete(self) -> bool:
        """Whether every item has every live modality."""
        return all(bool(inputs.present[1:].all()) for inputs in self.inputs.values())

    @property
    def present(self) -> dict[str, Bool[np.ndarray, " row"]]:
        """Modality -> whether each row has it."""
        return {name: inputs.present for name, inputs in self.inputs.items()}


@struct.dataclass
class LiveFrozen:
    """What live backbones read and never train.

    Attributes:
        backbones: modality -> the backbone's parameters that are not trained.
        start: modality -> what the training of those that are trained begins with, on the host; see `begun`.
        catalogue: raw inputs, on the host.
    """

    backbones: dict[str, Params]
    start: dict[str, Params]
    catalogue: LiveCatalogue = struct.field(pytree_node=False)

    def begun(self) -> LiveFrozen:
        """Without what only the beginning reads: on a device it would take as much memory as the trained weights."""
        return replace(self, start={})


@dataclass(frozen=True, eq=False)
class LiveBackbones:
    """The live modalities, by name."""

    backbones: Mapping[str, LiveBackbone]

    def frozen(self, catalogue: LiveCatalogue) -> LiveFrozen:
        """What is not trained, for a catalogue."""
        parts = self.backbones.items()
        return LiveFrozen({n: part.frozen for n, part in parts}, {n: part.start for n, part in parts}, catalogue)

    def init(self, rng: Array, start: dict[str, Params]) -> dict[str, Params]:
        """What is trained inside each backbone, as it begins; backbones that are all frozen have no entry."""
        keys = {name: jax.random.fold_in(rng, number) for number, name in enumerate(sorted(self.backbones))}
        trained = {name: part for name, part in self.backbones.items() if part.trained}
        return {name: part.init(keys[name], start[name]) for name, part in trained.items()}

    def blank(self, cached: StateTable) -> StateTable:
        """A table of the padding row and one item, both zeros: what the shapes of modules follow from."""
        rows = jnp.zeros(2, jnp.int32)
        shapes = {name: part.shape for name, part in self.backbones.items()}
        zeros = {name: (jnp.zeros((2, width)),) * layers for name, (width, layers) in shapes.items()}
        seen = {name: jnp.zeros(2, bool) for name in shapes}
        own = cached.rows(rows)
        return StateTable(own.values | zeros, {}, own.present | seen, complete=False)

    def states(
        self,
        trained: dict[str, Params],
        frozen: LiveFrozen,
        media: dict[str, RawBatch],
        cached: HiddenStates,
        rng: Array | None = None,
        shards: Shards | None = None,
    ) -> HiddenStates:
        """Hidden states of a batch's items: those that were looked up, and those that are computed here.

        Args:
            trained: modality -> what is trained inside its backbone.
            frozen: the rest.
            media: modality -> the items' inputs.
            cached: states of the other modalities.
            rng: key of dropout; none where it is off.
            shards: of a step over several devices.
        """
        values, present = dict(cached.values), dict(cached.present)
        for number, name in enumerate(sorted(self.backbones)):
            key = None if rng is None else jax.random.fold_in(rng, number)
            part = self.backbones[name]
            values[name] = part.states(trained.get(name, {}), frozen.backbones[name], media[name], key, shards)
            present[name] = media[name].present
        return HiddenStates(
            values, present, complete=cached.complete and frozen.catalogue.complete, trained=bool(trained)
        )

    def table(
        self,
        trained: dict[str, Params],
        frozen: LiveFrozen,
        cached: StateTable,
        shards: Shards | None = None,
    ) -> StateTable:
        """States of the whole catalogue with the given parameters, as a table beside that of the other modalities.

        Over a mesh each process encodes the rows that its devices have, and no others.
        """
        values: dict[str, Any] = dict(cached.values)
        present: dict[str, Any] = dict(cached.present)
        for name, part in self.backbones.items():
            inputs = frozen.catalogue.inputs[name]
            count = len(inputs.present)
            rows = (slice(0, count),) if shards is None else shards.own_rows(count)
            states = part.encode(trained.get(name, {}), frozen.backbones[name], inputs, rows)
            if shards is None:
                values[name], present[name] = (
                    tuple(jnp.asarray(layer[0]) for layer in states),
                    jnp.asarray(inputs.present),
                )
            else:
                values[name] = tuple(shards.of_own_rows(count, layer) for layer in states)
                present[name] = shards.by_rows(inputs.present)
        complete = cached.complete and frozen.catalogue.complete
        return StateTable(values, cached.scales, present, complete, cached.shards if shards is None else shards)
