"""Dropout by a counter: whether an entry is kept is a hash of its number and the step's key.

Nothing is drawn beforehand or kept: the backward pass computes the masks anew where it reads them. A draw by JAX's
default generator takes a tenth of the main job's step on a CPU, one by Philox a thirtieth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32


@dataclass(frozen=True)
class Numbered:
    """The rows of an array that is a part of a larger one: their numbers there, and how many it has."""

    rows: Int[Array, " row"]
    total: int


def keep_masks(
    rng: Array, shapes: Sequence[tuple[int, ...]], rate: float, parts: Sequence[Numbered | None] | None = None
) -> list[Bool[Array, ...]]:
    """One mask a shape, True with probability 1 - rate; the same on every backend.

    Args:
        rng: the step's key.
        shapes: of the masks.
        rate: of what is dropped.
        parts: for each shape the rows of a larger array that the mask is of, None for a whole one; the mask is then
            what the larger one's would be there, however it is cut up.
    """
    if rate <= 0:
        return [jnp.ones(shape, bool) for shape in shapes]
    key = jax.random.key_data(rng).astype(jnp.uint32)
    masks, first = [], 0
    for shape, part in zip(shapes, parts or [None] * len(shapes), strict=True):
        inner = math.prod(shape[1:])
        total = shape[0] if part is None else part.total
        if part is None:
            counter = lax.iota(jnp.uint32, total * inner)
        else:
            rows = part.rows.astype(jnp.uint32)
            counter = (rows[:, None] * jnp.uint32(inner) + lax.iota(jnp.uint32, inner)).reshape(-1)
        bits = _hash(counter + jnp.uint32(first % 2**32), key[0], key[1])
        masks.append((bits >= jnp.uint32(round(rate * 2**32))).reshape(shape))
        first += total * inner
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
