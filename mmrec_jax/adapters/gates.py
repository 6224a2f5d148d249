"""Scalar gates that mix the sources of a side block: backbone states and side states of the layer before."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30  # a logit whose softmax weight is exactly 0 in float32


@jax.custom_vjp
def gated_sum(
    weights: Float[Array, " source"], sources: tuple[Float[Array, "item width"], ...]
) -> Float[Array, "item width"]:
    """``sum_s weights[s] * sources[s]`` for weights shared by all items.

    The gradient of a weight is a sum over all entries of an array; summed over items first it vectorises.
    """
    return sum((weights[s] * source for s, source in enumerate(sources[1:], 1)), weights[0] * sources[0])


def _gated_sum_forward(weights, sources):
    return gated_sum(weights, sources), (weights, sources)


def _gated_sum_backward(saved, grad):
    weights, sources = saved
    by_weight = jnp.stack([jnp.sum(jnp.sum(grad * source, axis=0)) for source in sources])
    return by_weight.astype(weights.dtype), tuple(weights[s] * grad for s in range(len(sources)))


gated_sum.defvjp(_gated_sum_forward, _gated_sum_backward)


def source_weights(
    logits: Float[Array, " source"],
    temperature: float,
    kind: str,
    present: Sequence[Bool[Array, " item"] | None] | None = None,
) -> Float[Array, "... source"]:
    """Weights of the sources of one block.

    Args:
        logits: one learned scalar a source.
        temperature: what the logits are divided by (0.1 in IISAN's code).
        kind: `softmax` (weights sum to one), `sigmoid` (each on its own), `add` (all one).
        present: whether each item has each source, None where all have it; absent sources weigh exactly 0, and under
            `softmax` the others are renormalised.

    Returns:
        `[source]`, or `[item, source]` where `present` is given.
    """
    if present is None:
        if kind == "softmax":
            return jax.nn.softmax(logits / temperature)
        return jax.nn.sigmoid(logits / temperature) if kind == "sigmoid" else jnp.ones_like(logits)
    items = next(mask for mask in present if mask is not None).shape[0]
    there = jnp.stack(
        [jnp.ones(items, bool) if mask is None else mask for mask in present],
        axis=-1,
    )
    if kind == "softmax":
        return jax.nn.softmax(jnp.where(there, logits / temperature, MASKED), axis=-1)
    weights = jax.nn.sigmoid(logits / temperature) if kind == "sigmoid" else jnp.ones_like(logits)
    return jnp.where(there, weights, 0.0)
