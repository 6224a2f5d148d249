"""Arrays of slots: experts that come and go in arrays of fixed size, so that nothing is compiled again.

A node of a parameter tree is one of slots if it has a leaf `trainable`. All its leaves have the slots as their first
axis: the values, and up to three masks in float32, which checkpoints, warm starts and optimisers take for parameters
like any other: `active` (the slot is in use), `trainable` (it is in use and trained), `born` (see
`streaming/growth.py`). Training changes no mask, and of the values only the rows of trainable slots.

Functions take trees of numpy or of JAX arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmrec_jax.types import Params

TRAINABLE = "trainable"
ACTIVE = "active"
MASKS = (ACTIVE, TRAINABLE, "born")
MEASURED = "standardise"
"""Nodes of this name hold what was measured of the data, which is no parameter of the model."""


def is_slots(node: Any) -> bool:
    """Whether a node of a parameter tree holds slots."""
    return isinstance(node, Mapping) and TRAINABLE in node and not isinstance(node[TRAINABLE], Mapping)


def masked_gradients(gradients: Params, params: Params) -> Params:
    """Gradients with zeros for whatever training must not change: frozen and unused slots, and masks.

    A norm of all gradients, by which they are clipped, is then that of what is trained.
    """
    return _over_slots(lambda trained, gradient, _: jnp.where(trained, gradient, 0), gradients, params)


def held(changed: Params, params: Params) -> Params:
    """`changed` with frozen and unused slots, and masks, bit for bit as in `params`, whatever an optimiser did."""
    return _over_slots(jnp.where, changed, params)


def sizes(params: Params) -> dict[str, tuple[int, int]]:
    """How many values of each leaf, by its '/'-joined name, are trained, and how many there are.

    Slots that are not in use do not count, nor do masks, nor what was measured of the data.
    """
    found: dict[str, tuple[int, int]] = {}
    for key, node in params.items():
        if key == MEASURED or (key in MASKS and is_slots(params)):
            continue
        if isinstance(node, dict):
            found |= {f"{key}/{name}": size for name, size in sizes(node).items()}
        elif is_slots(params):
            row = int(np.prod(node.shape[1:]))
            found[key] = row * _used(params, TRAINABLE), row * _used(params, ACTIVE)
        else:
            found[key] = int(np.size(node)), int(np.size(node))
    return found


def counts(params: Params) -> tuple[int, int]:
    """How many parameters are trained, and how many there are, as `sizes` has them."""
    found = sizes(params).values()
    return sum(trained for trained, _ in found), sum(total for _, total in found)


def _used(node: Mapping[str, Any], mask: str) -> int:
    return int(np.sum(np.asarray(node[mask]) > 0))


def _over_slots(choose: Callable[..., Any], changed: Params, params: Params) -> Params:
    """`changed`, with each leaf of a slots node as `choose(trained, changed, old)` says; masks count as not trained."""
    if is_slots(params):
        trained = params[TRAINABLE] > 0
        return {
            key: choose(_rows(trained, leaf) if key not in MASKS else False, changed[key], leaf)
            for key, leaf in params.items()
        }
    if isinstance(params, dict):
        return {key: _over_slots(choose, changed[key], node) for key, node in params.items()}
    return changed


def _rows(mask: Float[Array, " slot"], leaf: Float[Array, "slot ..."]) -> Array:
    """A mask of slots in the rank of a leaf."""
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - 1))
