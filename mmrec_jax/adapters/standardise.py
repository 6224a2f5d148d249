"""Hidden states on one scale, whatever backbone and layer they come from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mmrec_jax.types import HiddenStates, Params

NAME = "standardise"
"""Of the module in every item encoder that has it."""
FLOOR = 1e-3
"""Share of a layer's whole power that its spread is taken for at least: the noise of a layer that says nothing, such as
the class token before the first block, is not blown up."""


class Standardise(nn.Module):
    """Takes the catalogue's mean vector from each layer's states and divides them by one number, so that their mean
    square is 1 (PROPOSAL).

    Backbones leave their layers on scales of their own: pooled MiniLM states have a length of 2 to 6, DINOv2's last
    class token one of 39, most of it a mean that all pictures share. Without this a modality begins training with a
    weight that its backbone's scale decides, and most of what a score reads is the same for all items.

    Mean and scale are parameters, so that they lie in the checkpoint and fit items that are added later, but they are
    measured at `init` on the states it is given and never trained. The scale's type is that of the result.
    """

    @nn.compact
    def __call__(self, hidden: HiddenStates) -> HiddenStates:
        """The states, standardised; which items have which modality stays as it is."""
        values = {
            name: tuple(self._layer(f"{name}_{k}", x, hidden.present[name]) for k, x in enumerate(layers))
            for name, layers in hidden.values.items()
        }
        return replace(hidden, values=values)

    def _layer(
        self, name: str, states: Float[Array, "item width"], present: Bool[Array, " item"]
    ) -> Float[Array, "item width"]:
        measured = self.param(name, lambda _: _measure(states, present))
        measured = jax.lax.stop_gradient(measured)
        return ((states - measured["mean"]) * measured["scale"]).astype(measured["scale"].dtype)


def _measure(states: Float[Array, "item width"], present: Bool[Array, " item"]) -> dict[str, Array]:
    """Mean vector and scale of a layer over the items that have it."""
    count = jnp.maximum(jnp.sum(present), 1)

    def over_items(x):
        return jnp.sum(jnp.where(present[:, None], x, 0.0), axis=0) / count

    mean = over_items(states)
    power, spread = jnp.mean(over_items(states**2)), jnp.mean(over_items((states - mean) ** 2))
    return {"mean": mean, "scale": jax.lax.rsqrt(spread + FLOOR * power + 1e-12)}


def in_products_of(dtype: DTypeLike, params: Params, inputs: Any) -> tuple[Params, Any]:
    """An item encoder's parameters and inputs as it takes them for products in `dtype`.

    States that are standardised come as they are, and so does their mean: rounded first, a state keeps 8 bits of a
    number that is mostly the catalogue's mean, and few of what tells items apart.

    Args:
        dtype: of the products.
        params: of the encoder; what a module named `standardise` measured is known by that name.
        inputs: what the encoder is called with.
    """

    def measured(path: tuple) -> bool:
        return NAME in (getattr(key, "key", None) for key in path)

    standardised = any(measured(path) for path, _ in jax.tree_util.tree_leaves_with_path(params))

    def parameter(path: tuple, leaf: Array) -> Array:
        return leaf if measured(path) and path[-1].key == "mean" else cast(leaf, dtype)

    return jax.tree_util.tree_map_with_path(parameter, params), inputs if standardised else cast(inputs, dtype)


def cast(tree: Any, dtype: DTypeLike) -> Any:
    """The tree with its floating-point leaves in another type."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)
