"""Vectors to the experts that were chosen for them and back, on one device or between the devices of a mesh.

With a mesh in place (`jax.set_mesh`) the vectors lie over all its devices and the experts over its axis `expert`; one
`all_to_all` takes the buffers of all modalities to the devices of their experts, and one brings the outputs back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from mmrec_jax.errors import ConfigError
from mmrec_jax.fusion.feedforward import ExpertWeights, own_expert
from mmrec_jax.fusion.routing import Choices, capacity_of, combine, dispatch, joined, slots

EXPERT_AXIS = "expert"


def chosen_experts(
    vectors: Mapping[str, Float[Array, "token width"]],
    choices: Mapping[str, Choices],
    weights: Mapping[str, ExpertWeights],
    capacity_factor: float,
    groups: int = 0,
) -> tuple[dict[str, Float[Array, "token width"]], dict[str, Bool[Array, "token choice"]]]:
    """Each vector's weighted sum of the outputs of its experts, by modality, and which choices had room.

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
    first = next(iter(vectors))
    groups, tokens, experts = groups or devices, vectors[first].shape[0], weights[first].kernel.shape[0]
    _check(mesh, devices, groups, experts)
    padding = ((0, -tokens % groups), (0, 0))
    filled = {name: jnp.pad(x, padding) for name, x in vectors.items()}
    chosen = {
        name: Choices(jnp.pad(each.experts, padding, constant_values=experts), jnp.pad(each.shares, padding))
        for name, each in choices.items()
    }
    top_k = chosen[first].experts.shape[-1]
    capacity = capacity_of(filled[first].shape[0] // groups, top_k, experts, capacity_factor)
    across = not mesh.empty and mesh.shape.get(EXPERT_AXIS, 1) > 1
    run: Callable[..., Any] = partial(_on_a_device, groups=groups // devices, capacity=capacity, across=across)
    if devices > 1:
        over_all = PartitionSpec(mesh.axis_names)
        by_expert = PartitionSpec(EXPERT_AXIS) if across else PartitionSpec()
        run = jax.shard_map(run, in_specs=(over_all, over_all, by_expert), out_specs=over_all)
    outputs, kept = run(filled, chosen, dict(weights))
    return {name: outputs[name][:tokens] for name in vectors}, {name: kept[name][:tokens] for name in vectors}


def _on_a_device(
    vectors: dict[str, Array],
    choices: dict[str, Choices],
    weights: dict[str, ExpertWeights],
    groups: int,
    capacity: int,
    across: bool,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The part of one device: its vectors, and its experts."""
    first = next(iter(vectors))
    tokens, width = vectors[first].shape
    top_k = choices[first].experts.shape[-1]
    experts = weights[first].kernel.shape[0] * (lax.axis_size(EXPERT_AXIS) if across else 1)

    def grouped(x: Array) -> Array:
        return x.reshape(groups, tokens // groups, x.shape[-1])

    found, buffers = {}, []
    for name, x in vectors.items():
        each = jax.vmap(lambda part: slots(part, experts, capacity))(jax.tree.map(grouped, choices[name]))
        found[name] = joined(each)
        filled = dispatch(x, found[name]).reshape(groups, experts, capacity, width)
        buffers.append(filled.swapaxes(0, 1).reshape(experts, groups * capacity, width))
    sent = jnp.stack(buffers)
    if across:
        sent = lax.all_to_all(sent, EXPERT_AXIS, split_axis=1, concat_axis=2, tiled=True)
    computed = jnp.stack([own_expert(part, weights[name]) for part, name in zip(sent, vectors, strict=True)])
    if across:
        computed = lax.all_to_all(computed, EXPERT_AXIS, split_axis=2, concat_axis=1, tiled=True)
    outputs, kept = {}, {}
    for name, part in zip(vectors, computed, strict=True):
        back = part.reshape(experts, groups, capacity, width).swapaxes(0, 1).reshape(-1, width)
        outputs[name] = combine(back, choices[name].shares, found[name])
        kept[name] = (found[name].of_choice < groups * experts * capacity).reshape(tokens, top_k)
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
