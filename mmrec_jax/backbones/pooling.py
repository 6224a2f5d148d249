"""One vector out of a layer's tokens."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def pool(
    state: Float[Array, "batch token width"],
    mask: Bool[Array, "batch token"] | None,
    pooling: str,
    class_tokens: int = 1,
    registers: int = 0,
) -> Float[Array, "batch width"]:
    """Pools one hidden state, in float32.

    Args:
        state: tokens of one layer.
        mask: True where a token is not padding; None when none is padding (images).
        pooling: "cls" averages the class tokens; "last" takes the last one before the padding (a decoder's, or CLIP's
            end of text, has seen the whole text); "mean" averages all tokens that are not padding, special tokens
            and class tokens included, registers left out.
        class_tokens: how many of the first tokens are, at least 1 for "cls".
        registers: how many tokens after those are registers; there are none where there is a mask.
    """
    state = state.astype(jnp.float32)
    if pooling == "cls":
        return state[:, :class_tokens].mean(axis=1)
    if pooling == "last":
        # A row without tokens only fills a batch: it has no last token, and its first one stands for it.
        last = state.shape[1] if mask is None else jnp.maximum(mask.sum(axis=1), 1)
        return jnp.take_along_axis(state, jnp.broadcast_to(last - 1, state.shape[:1])[:, None, None], axis=1)[:, 0]
    if registers:
        state = jnp.delete(state, slice(class_tokens, class_tokens + registers), axis=1)
    if mask is None:
        return state.mean(axis=1)
    weights = mask.astype(state.dtype)
    return jnp.einsum("btw,bt->bw", state, weights) / jnp.maximum(weights.sum(axis=1, keepdims=True), 1)


def pool_frames(vectors: Float[Array, "batch frame width"], pooling: str) -> Float[Array, "batch width"]:
    """One vector out of those of a video's frames: their "mean", or the "max" of each feature."""
    return vectors.max(axis=1) if pooling == "max" else vectors.mean(axis=1)
