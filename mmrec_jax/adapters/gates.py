"""Scalar gates that mix the sources of a side block: backbone states and side states of the layer before."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30  # a logit whose softmax weight is exactly 0 in float32


def gated_sum(
    weights: Float[Array, "*item source"], sources: tuple[Float[Array, "item width"], ...]
) -> Float[Array, "item width"]:
    """``sum_s weights[s] * sources[s]``, for weights that all items share or weights of each item."""
    shares = [weights[s] if weights.ndim == 1 else weights[:, s, None] for s in range(len(sources))]
    return sum((share * source for share, source in zip(shares[1:], sources[1:], strict=True)), shares[0] * sources[0])


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
