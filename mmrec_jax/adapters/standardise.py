"""Hidden states on one scale, whatever backbone and layer they come from."""

from __future__ import annotations

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrec_jax.types import HiddenStates

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
    measured at `init` on the states it is given and never trained.
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
        return (states - measured["mean"]) * measured["scale"]


def _measure(states: Float[Array, "item width"], present: Bool[Array, " item"]) -> dict[str, Array]:
    """Mean vector and scale of a layer over the items that have it."""
    count = jnp.maximum(jnp.sum(present), 1)

    def over_items(x):
        return jnp.sum(jnp.where(present[:, None], x, 0.0), axis=0) / count

    mean = over_items(states)
    power, spread = jnp.mean(over_items(states**2)), jnp.mean(over_items((states - mean) ** 2))
    return {"mean": mean, "scale": jax.lax.rsqrt(spread + FLOOR * power + 1e-12)}
