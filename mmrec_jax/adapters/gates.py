"""Scalar gates that mix the sources of a side block: backbone states and side states of the layer before."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

MASKED = -1e30  # a logit whose softmax weight is exactly 0 in float32


def gated_sum(
    weights: Float[Array, "*item source"], sources: tuple[Float[Array, "item width"], ...]
) -> Float[Array, "item width"]:
    """``sum_s weights[s] * sources[s]``, for weights that all items share or weights of each item."""
    parts = split_off(weights, axis=-1)
    shares = parts if weights.ndim == 1 else [part[:, None] for part in parts]
    return sum((share * source for share, source in zip(shares[1:], sources[1:], strict=True)), shares[0] * sources[0])


def split_off(x: Float[Array, ...], axis: int) -> list[Float[Array, ...]]:
    """The slices of an axis. The gradient is put together in one piece; that of indexing is padded and added up."""
    return [jnp.squeeze(part, axis) for part in lax.split(x, (1,) * x.shape[axis], axis % x.ndim)]


def source_weights(
    logits: Float[Array, "*rung source"], temperature: float, kind: str, there: Bool[Array, "*rung source"]
) -> Float[Array, "*rung source"]:
    """Weights of the sources of blocks.

    Args:
        logits: one learned scalar a source.
        temperature: what the logits are divided by (0.1 in IISAN's code).
        kind: `softmax` (weights sum to one), `sigmoid` (each on its own), `add` (all one).
        there: whether there is such a source; absent ones weigh exactly 0, and under `softmax` the others are
            renormalised.

    Returns:
        Weights in the common shape of `logits` and `there`.
    """
    if kind == "softmax":
        return jax.nn.softmax(jnp.where(there, logits / temperature, MASKED), axis=-1)
    weights = jax.nn.sigmoid(logits / temperature) if kind == "sigmoid" else jnp.ones_like(logits)
    return jnp.where(there, weights, 0.0)
