"""Dropout: the masks of a whole module in one draw of random bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float


def keep_masks(rng: Array, shapes: Sequence[tuple[int, ...]], rate: float) -> list[Bool[Array, ...]]:
    """One mask a shape, True with probability 1 - rate.

    All come from one draw of 16 bits an entry by the Philox generator, which gives the same bits on every backend. On a
    CPU a draw for each mask by JAX's default generator takes a tenth of the main job's step. The rate is kept to 2^-16.
    """
    sizes = [math.prod(shape) for shape in shapes]
    state = jnp.zeros(4, jnp.uint32).at[:2].set(jax.random.key_data(rng)[:2])
    words = lax.rng_bit_generator(state, (-(-sum(sizes) // 2),), jnp.uint32, algorithm=lax.RandomAlgorithm.RNG_PHILOX)[
        1
    ]
    keep = lax.bitcast_convert_type(words, jnp.uint16).ravel() >= round(rate * 2**16)
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [keep[stop - size : stop].reshape(shape) for size, stop, shape in zip(sizes, stops, shapes, strict=True)]


def dropped(x: Float[Array, "*shape"], keep: Bool[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
    """Inverted dropout: the entries to keep, scaled so that their mean stays."""
    return jnp.where(keep, x / (1.0 - rate), 0.0)


def drop(module: nn.Module, x: Float[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
    """Dropout of `x` by a module's key "dropout"; `x` as it is where `apply` was given none, or the rate is 0."""
    if not rate or not module.has_rng("dropout"):
        return x
    (keep,) = keep_masks(module.make_rng("dropout"), [x.shape], rate)
    return dropped(x, keep, rate).astype(x.dtype)
