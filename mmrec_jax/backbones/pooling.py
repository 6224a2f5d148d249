"""One vector out of a layer's tokens."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def pool(
    state: Float[Array, "batch token width"], mask: Bool[Array, "batch token"] | None, pooling: str
) -> Float[Array, "batch width"]:
    """Pools one hidden state.

    Args:
        state: tokens of one layer.
        mask: True where a token is not padding; None when none is padding (images).
        pooling: "cls" takes the first token; "mean" averages all tokens that are not padding, special tokens
            and an image's class token included.
    """
    if pooling == "cls":
        return state[:, 0]
    if mask is None:
        return state.mean(axis=1)
    weights = mask.astype(state.dtype)
    return jnp.einsum("btw,bt->bw", state, weights) / jnp.maximum(weights.sum(axis=1, keepdims=True), 1)
