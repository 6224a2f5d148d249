"""A run as shapes: its task, parameters, store and batches over the devices of a topology, and no values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import SingleDeviceSharding

from mmrec_jax import experiment
from mmrec_jax.backbones.config import ModalityConfig
from mmrec_jax.config import RunConfig
from mmrec_jax.errors import ConfigError
from mmrec_jax.live import LiveBackbones, LiveCatalogue, RawInputs
from mmrec_jax.live.catalogue import LiveFrozen
from mmrec_jax.live.parts import RawBatch
from mmrec_jax.parallel.mesh import make_mesh
from mmrec_jax.parallel.placement import MeshPlacement, shards_over
from mmrec_jax.planning.backbones import backbone_shapes, head_of, input_shapes, live_shapes
from mmrec_jax.planning.topology import Topology, devices
from mmrec_jax.shards import Shards
from mmrec_jax.store.table import StateTable
from mmrec_jax.training.items import SequentialFrozen
from mmrec_jax.training.sequential import SequentialRecommendation
from mmrec_jax.training.trees import path_name
from mmrec_jax.types import Params, SequenceBatch


@dataclass(frozen=True)
class Sizes:
    """What shapes follow from.

    Attributes:
        items: of the catalogue.
        users: to be evaluated.
        batch: users a step.
        length: items of a history.
        distinct: items that a batch names, the padding row among them.
        steps: positions of a batch that have a target.

    The axes of a batch are somewhat longer, as its stream would make them; see `axes`.
    """

    items: int
    users: int
    batch: int
    length: int
    distinct: int
    steps: int


@dataclass(frozen=True)
class RunShapes:
    """The parts of a run.

    Attributes:
        config: of the run.
        topology: what it is planned for.
        sizes: of its data.
        shards: what is split over the devices; None on one device.
        task: as it is trained.
        frozen: what it reads and never trains.
        evaluated: the same in an evaluation: the states that live backbones gave to the whole catalogue lie in the
            table, as float32.
        params: what is trained.
        batch: one step's.
        placement: where parameters lie; None on one device.
        device: the first of the topology.
    """

    config: RunConfig
    topology: Topology
    sizes: Sizes
    shards: Shards | None
    task: SequentialRecommendation
    frozen: SequentialFrozen
    evaluated: SequentialFrozen
    params: Params
    batch: SequenceBatch
    placement: MeshPlacement | None
    device: Any

    def state(self, tree: Any) -> Any:
        """Shapes of what lies with the parameters, where it lies."""
        return _placed_state(tree, self.placement, self.device)

    def whole(self, tree: Any) -> Any:
        """Shapes of what every device has."""
        where = SingleDeviceSharding(self.device) if self.shards is None else self.shards.whole
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree)


def run_shapes(config: RunConfig, topology: Topology, sizes: Sizes) -> RunShapes:
    """The parts of a run for a topology.

    Raises:
        ConfigError: the mesh does not fit the topology, or the batch the mesh.
        PlanningError: nothing is known of a backbone, or the topology cannot be compiled for.
    """
    config, found, shards = for_platform(config, topology), devices(topology), shards_of(config, topology)
    if shards is not None and sizes.batch % shards.batch_parts:
        raise ConfigError(
            f"training.batch_size={sizes.batch} cannot be split over {shards.batch_parts} devices: choose a multiple "
            f"of {shards.batch_parts}, or give parallel.data a size that divides it."
        )
    live = _live(config)
    rows = sizes.items + 1
    sizes_of = {name: part.backbone.sizes for name, part in live.backbones.items()} if live else {}
    placement = None if shards is None else MeshPlacement(config.parallel, shards, sizes_of, rows)
    frozen = _frozen(config, config.cached, rows, shards, found[0], _live_frozen(live, placement, found[0]))
    evaluated = frozen if live is None else _frozen(config, config.modalities, rows, shards, found[0], None)
    task = experiment.build_task(config, frozen.states, rows, live, shards)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(lambda key, frozen: task.init(key, frozen), key, frozen)
    return RunShapes(
        config,
        topology,
        sizes,
        shards,
        task,
        frozen,
        evaluated,
        _placed_state(params, placement, found[0]),
        _batch(config, sizes, shards, found[0], live),
        placement,
        found[0],
    )


def shards_of(config: RunConfig, topology: Topology) -> Shards | None:
    """What is split over a topology; None for one device.

    Raises:
        ConfigError: the mesh does not fit it.
        PlanningError: it cannot be compiled for.
    """
    if topology.chips == 1 and all(size in (-1, 1) for size in config.parallel.sizes):
        return None
    return shards_over(make_mesh(config.parallel, devices(topology)), config.parallel)


def for_platform(config: RunConfig, topology: Topology) -> RunConfig:
    """The config with what depends on the backend of the run, and not of the process that plans, said."""
    if config.training.compute_dtype != "auto":
        return config
    dtype = "float32" if topology.chip.platform == "cpu" else "bfloat16"
    return replace(config, training=replace(config.training, compute_dtype=dtype))


def chosen_sizes(config: RunConfig) -> Sizes:
    """The sizes that `config.plan` says, of which `catalogue` must be set."""
    plan, batch, length = config.plan, config.training.batch_size, config.model.length
    distinct = min(plan.distinct or batch * (length + 1), plan.catalogue) + 1
    steps = min(plan.steps or batch * length, batch * length)
    return Sizes(plan.catalogue, plan.users, batch, length, distinct, steps)


def axes(config: RunConfig, sizes: Sizes, shards: Shards | None) -> tuple[int, int]:
    """Lengths of a batch's axes `distinct` and `step`.

    Where each device encodes the items that it has, all parts are as long as the longest: of items that lie anywhere
    with the same chance, which is what catalogues without an order by popularity come to, four standard deviations
    above the mean.
    """
    groups = shards.batch_parts if shards else 1
    multiple, distinct = math.lcm(16, groups), float(sizes.distinct)
    if shards is not None and shards.encode == "own" and config.objective.candidates == "batch":
        mean = distinct / shards.owners
        distinct = shards.owners * (mean + 4 * math.sqrt(mean))

    def rounded(size: float, by: int) -> int:
        return math.ceil(size / by) * by

    return rounded(distinct, multiple), rounded(sizes.steps, 16 * groups)


def _live(config: RunConfig) -> LiveBackbones | None:
    if not config.methods:
        return None
    return LiveBackbones(
        {
            name: live_shapes(name, config.modalities[name], method, config.extraction)
            for name, method in config.methods.items()
        }
    )


def _placed_state(tree: Any, placement: MeshPlacement | None, device: Any) -> Any:
    def placed(path: Any, leaf: Any) -> Any:
        where = SingleDeviceSharding(device)
        if placement is None:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        shape = placement.filled(path_name(path), leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=placement.parameter(path_name(path), shape))

    return jax.tree_util.tree_map_with_path(placed, tree)


def _frozen(
    config: RunConfig,
    tabled: Mapping[str, ModalityConfig],
    rows: int,
    shards: Shards | None,
    device: Any,
    live: LiveFrozen | None,
) -> SequentialFrozen:
    """The catalogue with the states of the modalities `tabled`: as the store has them, live ones as float32."""
    padded = rows if shards is None else shards.filled(rows)
    where = SingleDeviceSharding(device) if shards is None else shards.split(shards.rows, padded)

    def of_rows(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct((padded, *sizes), dtype, sharding=where)

    values: dict[str, Any] = {}
    scales: dict[str, Any] = {}
    for name, modality in tabled.items():
        backbone = backbone_shapes(modality)
        layers = range(len(head_of(modality, backbone).layers))
        kept = config.extraction.dtype if name in config.cached else "float32"
        values[name] = tuple(of_rows(jnp.dtype(kept), backbone.sizes.width) for _ in layers)
        if kept == "int8":
            scales[name] = tuple(of_rows(jnp.float32) for _ in layers)
    present = {name: of_rows(jnp.bool_) for name in values}
    table = StateTable(values, scales, present, complete=False, shards=shards)
    states = table if config.modalities else None
    total = 0 if shards is None else rows
    return SequentialFrozen(states, of_rows(jnp.float32), live, total)


def _live_frozen(live: LiveBackbones | None, placement: MeshPlacement | None, device: Any) -> LiveFrozen | None:
    if live is None:
        return None

    def laid(name: str, tree: Any) -> Any:
        named = traverse_util.flatten_dict(tree, sep="/")
        where: dict[str, Any] = dict.fromkeys(named, SingleDeviceSharding(device))
        where = where if placement is None else placement.of_backbone(named, name)
        found = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where[path]) for path, leaf in named.items()
        }
        return traverse_util.unflatten_dict(found, sep="/")

    # A catalogue in which the second of two rows is there: nothing of it is looked at but that not all items are.
    none = RawInputs(np.zeros(0), np.zeros(4, np.int64), np.asarray([False, True, False]), ())
    parts = live.backbones.items()
    return LiveFrozen(
        {name: laid(name, part.frozen) for name, part in parts},
        {name: laid(name, part.start) for name, part in parts},
        LiveCatalogue({name: none for name, _ in parts}),
    )


def _batch(
    config: RunConfig, sizes: Sizes, shards: Shards | None, device: Any, live: LiveBackbones | None
) -> SequenceBatch:
    def split(shape: tuple[int, ...], dtype: Any = jnp.int32) -> Any:
        where = SingleDeviceSharding(device) if shards is None else shards.split(shards.batch, shape[0])
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    media: dict[str, Any] = {}
    distinct, steps = axes(config, sizes, shards)
    groups = 1 if shards is None else shards.batch_parts
    for name, part in (live.backbones if live else {}).items():
        modality = config.modalities[name]
        # Each device has the inputs of its own items, in rows that divide into the method's lots.
        multiple = part.method.chunk or 4
        rows = -(-distinct // groups // multiple) * multiple
        inputs, _ = input_shapes(modality, part.backbone, rows, tokens=config.plan.tokens, packs=part.packs, raw=True)

        def over_devices(leaf: Any, multiple: int = multiple) -> Any:
            return split((groups * -(-leaf.shape[0] // multiple) * multiple, *leaf.shape[1:]), leaf.dtype)

        inputs = jax.tree.map(over_devices, inputs)
        media[name] = RawBatch((inputs,), split((distinct,)), split((distinct,), jnp.bool_))
    return SequenceBatch(
        items=split((distinct,)),
        counts=split((distinct,)),
        positions=split((sizes.batch, sizes.length + 1)),
        steps=split((steps,)),
        users=split((sizes.batch,)),
        media=media,
    )
