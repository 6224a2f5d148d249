"""Vectors to the experts that were chosen for them and back, on one device or between the devices of a mesh.

With a mesh in place (`jax.set_mesh`) the vectors lie over all its devices and the experts over its axis `expert`; one
`all_to_all` takes the buffers of all modalities to the devices of their experts, and one brings the outputs back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from mmrec_jax.errors import ConfigError
from mmrec_jax.fusion.feedforward import ExpertWeights, own_expert
from mmrec_jax.fusion.routing import Choices, capacity_of, combine, dispatch, slots

EXPERT_AXIS = "expert"


def chosen_experts(
    vectors: Sequence[Float[Array, "token width"]],
    choices: Sequence[Choices],
    weights: Sequence[ExpertWeights],
    capacity_factor: float,
    groups: int = 0,
) -> tuple[list[Float[Array, "token width"]], list[Bool[Array, "token choice"]]]:
    """Each vector's weighted sum of the outputs of its experts, one entry a modality, and which choices had room.

    Args:
        vectors: of each modality.
        choices: experts of the vectors.
        weights: parameters of each modality's experts.
        capacity_factor: slots of an expert in units of the even load.
        groups: parts of the vectors, in their order, with slots of their own; 0 is one a device.

    Raises:
        ConfigError: devices that do not divide the groups, or the experts.
    """
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    groups, tokens, experts = groups or devices, vectors[0].shape[0], weights[0].kernel.shape[0]
    _check(mesh, devices, groups, experts)
    padding = -tokens % groups
    filled = [jnp.pad(x, ((0, padding), (0, 0))) for x in vectors]
    chosen = [
        Choices(
            jnp.pad(each.experts, ((0, padding), (0, 0)), constant_values=experts),
            jnp.pad(each.shares, ((0, padding), (0, 0))),
        )
        for each in choices
    ]
    top_k = chosen[0].experts.shape[-1]
    capacity = capacity_of((tokens + padding) // groups, top_k, experts, capacity_factor)
    across = not mesh.empty and mesh.shape.get(EXPERT_AXIS, 1) > 1
    run = partial(_on_a_device, groups=groups // devices, capacity=capacity, across=across)
    if devices > 1:
        over_all = PartitionSpec(mesh.axis_names)
        by_expert = PartitionSpec(EXPERT_AXIS) if across else PartitionSpec()
        run = jax.shard_map(run, in_specs=(over_all, over_all, by_expert), out_specs=over_all)
    outputs, kept = run(filled, chosen, list(weights))
    return [out[:tokens] for out in outputs], [mask[:tokens] for mask in kept]


def _on_a_device(vectors, choices, weights, *, groups: int, capacity: int, across: bool):
    """The part of one device: its vectors, and its experts."""
    tokens, width = vectors[0].shape
    top_k = choices[0].experts.shape[-1]
    held = weights[0].kernel.shape[0]
    experts = held * (lax.axis_size(EXPERT_AXIS) if across else 1)

    def grouped(x: Array) -> Array:
        return x.reshape(groups, tokens // groups, x.shape[-1])

    found, buffers = [], []
    for x, chosen in zip(vectors, choices, strict=True):
        chosen = jax.tree.map(grouped, chosen)
        found.append(jax.vmap(lambda part: slots(part, experts, capacity))(chosen))
        filled = jax.vmap(dispatch)(grouped(x), found[-1]).reshape(groups, experts, capacity, width)
        buffers.append(filled.swapaxes(0, 1).reshape(experts, groups * capacity, width))
    sent = jnp.stack(buffers)
    if across:
        sent = lax.all_to_all(sent, EXPERT_AXIS, split_axis=1, concat_axis=2, tiled=True)
    computed = jnp.stack([own_expert(part, each) for part, each in zip(sent, weights, strict=True)])
    if across:
        computed = lax.all_to_all(computed, EXPERT_AXIS, split_axis=2, concat_axis=1, tiled=True)
    outputs, kept = [], []
    for part, chosen, place in zip(computed, choices, found, strict=True):
        back = part.reshape(experts, groups, capacity, width).swapaxes(0, 1).reshape(groups, -1, width)
        outputs.append(jax.vmap(combine)(back, grouped(chosen.shares), place).reshape(tokens, width))
        kept.append((place.of_choice < experts * capacity).reshape(tokens, top_k))
    return outputs, kept


def _check(mesh: AbstractMesh, devices: int, groups: int, experts: int) -> None:
    if groups % devices:
        raise ConfigError(
            f"fusion.groups={groups}: the mesh has {devices} devices, each with groups of its own; choose a multiple."
        )
    over = 1 if mesh.empty else mesh.shape.get(EXPERT_AXIS, 1)
    if experts % over:
        raise ConfigError(
            f"fusion.experts={experts} do not divide over the {over} devices along parallel.{EXPERT_AXIS}: choose a "
            "multiple."
        )
