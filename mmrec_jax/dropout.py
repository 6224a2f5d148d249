"""Dropout by a counter: whether an entry is kept is a hash of its number and the step's key.

Nothing is drawn beforehand or kept: the backward pass computes the masks anew where it reads them. A draw by JAX's
default generator takes a tenth of the main job's step on a CPU, one by Philox a thirtieth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, UInt32


def keep_masks(rng: Array, shapes: Sequence[tuple[int, ...]], rate: float) -> list[Bool[Array, ...]]:
    """One mask a shape, True with probability 1 - rate; the same on every backend."""
    if rate <= 0:
        return [jnp.ones(shape, bool) for shape in shapes]
    key = jax.random.key_data(rng).astype(jnp.uint32)
    masks, first = [], 0
    for shape in shapes:
        size = math.prod(shape)
        bits = _hash(lax.iota(jnp.uint32, size) + jnp.uint32(first), key[0], key[1])
        masks.append((bits >= jnp.uint32(round(rate * 2**32))).reshape(shape))
        first += size
    return masks


def _hash(counter: UInt32[Array, " n"], low: UInt32[Array, ""], high: UInt32[Array, ""]) -> UInt32[Array, " n"]:
    """32 bits a counter, by two rounds of a mixer, each of which takes one word of the key."""
    return _mixed(_mixed(counter ^ low) ^ high)


def _mixed(x: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    """A bijection of 32-bit words in which a flipped bit flips each bit of the result with a probability near a half
    (C. Wellons' `lowbias32`, found by search; its constants)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def dropped(x: Float[Array, "*shape"], keep: Bool[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
    """Inverted dropout: the entries to keep, scaled so that their mean stays."""
    return jnp.where(keep, x / (1.0 - rate), 0.0)


def drop(module: nn.Module, x: Float[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
    """Dropout of `x` by a module's key "dropout"; `x` as it is where `apply` was given none, or the rate is 0."""
    if not rate or not module.has_rng("dropout"):
        return x
    (keep,) = keep_masks(module.make_rng("dropout"), [x.shape], rate)
    return dropped(x, keep, rate).astype(x.dtype)
