"""Where the arrays of a run lie on its mesh."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmrec_jax.backbones.sharding import MESH_AXES, parameter_shardings
from mmrec_jax.backbones.transformer import TransformerConfig
from mmrec_jax.live.catalogue import LiveFrozen
from mmrec_jax.parallel.config import ParallelConfig
from mmrec_jax.parallel.mesh import run_mesh
from mmrec_jax.shards import Shards
from mmrec_jax.store.table import StateTable
from mmrec_jax.training.items import SequentialFrozen
from mmrec_jax.training.trees import path_name, placed

LOGICAL_AXES: dict[str, tuple[str | None, ...]] = {
    r"(.*/)?items/(ids/)?embedding": ("rows",),
    r"(.*/)?items/(content/)?fusion/experts_\w+/\w+": ("experts",),
}
"""Pattern of a trained parameter's path -> the logical axis of each of its axes. The optimiser keeps its moments under
the same paths, so that they lie with their parameters; arrays of no pattern are on every device."""


_EMBEDDED = re.compile(r"(?:.*/)?embedded/([^/]+)/(.+)")


def run_shards(config: ParallelConfig) -> Shards | None:
    """What is split over the devices of a run; None where it has one device.

    Raises:
        ConfigError: the mesh does not fit the devices.
    """
    mesh = run_mesh(config)
    if mesh is None:
        return None
    return shards_over(mesh, config)


def shards_over(mesh: Mesh, config: ParallelConfig) -> Shards:
    """What is split over a mesh."""
    return Shards(mesh, config.axes("batch"), config.axes("rows"), config.negatives, config.encode, config.messages)


class MeshPlacement:
    """Batches and the catalogue's rows split over a mesh, parameters as `LOGICAL_AXES` and the rules say.

    Tables with a row for each item of the catalogue are filled up with zeros on the devices, as the catalogue is, and
    nowhere else: checkpoints do not depend on the mesh.
    """

    def __init__(
        self,
        config: ParallelConfig,
        shards: Shards,
        backbones: Mapping[str, TransformerConfig] | None = None,
        rows: int = 0,
    ):
        """
        Args:
            config: rules.
            shards: of the mesh.
            backbones: modality -> sizes of the backbone that is run in the step.
            rows: of the catalogue, the padding row among them; 0 where no parameter has one for each.
        """
        self._config, self._shards, self._backbones, self._rows = config, shards, backbones or {}, rows

    def state(self, tree: Any) -> Any:
        """Parameters and what belongs to them, by the names of the leaves; what lies there already stays as it is."""

        def put(path: tuple, leaf: Any) -> jax.Array:
            name = path_name(path)
            shape = self.filled(name, np.shape(leaf))
            where = self.parameter(name, shape)
            if isinstance(leaf, jax.Array) and leaf.sharding == where and leaf.shape == shape:
                return leaf
            if len(shape) and shape[0] != len(leaf):
                leaf = np.concatenate([leaf, np.zeros((shape[0] - len(leaf), *shape[1:]), leaf.dtype)])
            return placed(leaf, where)

        return jax.tree_util.tree_map_with_path(put, tree)

    def filled(self, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape that a parameter has on the devices."""
        if not shape or shape[0] != self._rows or not self._by_rows(path):
            return shape
        return self._shards.filled(self._rows), *shape[1:]

    @staticmethod
    def _by_rows(path: str) -> bool:
        return any(axes[0] == "rows" and re.fullmatch(pattern, path) for pattern, axes in LOGICAL_AXES.items())

    def parameter(self, path: str, shape: tuple[int, ...]) -> NamedSharding:
        """Where a parameter of this shape lies; an axis that the mesh does not divide is kept whole."""
        mesh = self._shards.mesh
        if (found := _EMBEDDED.fullmatch(path)) and found[1] in self._backbones:
            return self.of_backbone({found[2]: jax.ShapeDtypeStruct(shape, np.float32)}, found[1])[found[2]]
        logical = next((axes for pattern, axes in LOGICAL_AXES.items() if re.fullmatch(pattern, path)), ())
        spec: list[tuple[str, ...] | None] = []
        for name, length in zip(logical, shape, strict=False):
            axes = self._config.axes(name) if name else ()
            parts = int(np.prod([mesh.shape[axis] for axis in axes]))
            spec.append(axes if parts > 1 and length % parts == 0 else None)
        return NamedSharding(mesh, PartitionSpec(*spec))

    def of_backbone(self, named: dict[str, Any], modality: str) -> dict[str, NamedSharding]:
        """Where weights of a backbone, by '/'-joined names, lie: tensor-parallel or fully sharded, as the rules say."""
        rules = {axis: self._config.axes(axis) for axis in MESH_AXES}
        shapes = traverse_util.unflatten_dict(named, sep="/")
        found = parameter_shardings(shapes, self._backbones[modality], self._shards.mesh, rules)
        return traverse_util.flatten_dict(found, sep="/")

    def _live(self, live: LiveFrozen) -> LiveFrozen:
        """Weights of the backbones by the rules; what training only begins with is on every device."""
        backbones = {}
        for modality, params in live.backbones.items():
            named = traverse_util.flatten_dict(params, sep="/")
            where = self.of_backbone(named, modality)
            put = {name: placed(leaf, where[name]) for name, leaf in named.items()}
            backbones[modality] = traverse_util.unflatten_dict(put, sep="/")
        start = jax.tree.map(lambda leaf: placed(leaf, self._shards.whole), live.start)
        return replace(live, backbones=backbones, start=start)

    def frozen(self, frozen: SequentialFrozen) -> SequentialFrozen:
        """The catalogue split by rows, filled up with rows of zeros to what the mesh divides, and the backbones."""
        frozen = self.catalogue(frozen)
        return frozen if frozen.live is None else replace(frozen, live=self._live(frozen.live))

    def catalogue(self, frozen: SequentialFrozen) -> SequentialFrozen:
        """The same with live backbones as they are; what is split already stays as it is."""
        shards, states = self._shards, frozen.states
        rows = frozen.num_rows
        where = shards.split(shards.rows, shards.filled(rows))

        def split(leaf: Any) -> jax.Array:
            if isinstance(leaf, jax.Array) and leaf.sharding == where and len(leaf) == shards.filled(rows):
                return leaf
            return shards.by_rows(np.asarray(leaf))

        if states is not None:
            states = StateTable(
                jax.tree.map(split, states.values),
                jax.tree.map(split, states.scales),
                jax.tree.map(split, states.present),
                states.complete,
                shards,
            )
        return replace(frozen, states=states, log_popularity=split(frozen.log_popularity), rows=rows)

    def batch(self, batch: Any) -> Any:
        """Users, steps and items of a batch, each split along its first axis."""
        shards = self._shards
        return jax.tree.map(lambda leaf: placed(leaf, shards.split(shards.batch, leaf.shape[0])), batch)

    def readable(self, tree: Any) -> Any:
        """Arrays that lie in other processes too are gathered; what was filled up is as it was."""
        from jax.experimental import multihost_utils

        def gathered(path: tuple, leaf: Any) -> Any:
            if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
                leaf = multihost_utils.process_allgather(leaf, tiled=True)
            filled = self._shards.filled(self._rows)
            if filled == self._rows or np.shape(leaf)[:1] != (filled,) or not self._by_rows(path_name(path)):
                return leaf
            return np.asarray(leaf)[: self._rows]

        return jax.tree_util.tree_map_with_path(gathered, tree)
