"""Users in blocks of one fixed shape: what ranking and top-k lists have in common.

A *call* scores `user_block` users. Inside it, on the device, users are taken a few at a time so that their
scores over the whole catalogue stay within `SCORES_BYTES`: on a CPU the counting then reads them from the
cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

from mmrec_jax.data.ragged import Ragged
from mmrec_jax.errors import EvaluationError
from mmrec_jax.evaluation.catalogue import ItemVectorsOf, largest_norm, rows_at_once

SCORES_BYTES = {"cpu": 6 << 20}
SCORES_BYTES_ACCELERATOR = 512 << 20

VectorsOf = Callable[[Int[np.ndarray, " user"]], Float[Array, "user width"]]


@dataclass(frozen=True)
class UserBlock:
    """The users of one call and the items they already had.

    Attributes:
        start: number of the first user.
        count: how many users are real; the rest repeat the last one.
        vectors: user vectors.
        pair_rows: per inner block, row within the block of each (user, item) pair; unused entries are 0.
        pair_items: the pair's catalogue row; unused entries are 0, the padding row.
    """

    start: int
    count: int
    vectors: Float[Array, "user width"]
    pair_rows: Int32[np.ndarray, "inner pair"]
    pair_items: Int32[np.ndarray, "inner pair"]


@dataclass(frozen=True)
class BlockShape:
    """Sizes of a call that are to be the same for any number of users, so that it is compiled once.

    Attributes:
        users: in a call.
        pairs: least room for (user, item) pairs in an inner block, a power of two.
    """

    users: int
    pairs: int = 1


def scores_of(users: Float[Array, "user width"], items: Float[Array, "row width"]) -> Float[Array, "user row"]:
    """Dot products in float32 on every device."""
    return jnp.matmul(users, items.T, precision=jax.lax.Precision.HIGHEST)


def user_blocks(
    vectors_of: VectorsOf,
    count: int,
    item_vectors: ItemVectorsOf,
    seen: Ragged | None,
    user_block: int | BlockShape,
) -> Iterator[UserBlock]:
    """Cut `count` users into blocks of one shape and check that all their scores are finite.

    Args:
        vectors_of: from user numbers (always `user_block` of them) to vectors; `array_producer` makes one of
            an array.
        count: number of users.
        item_vectors: one a catalogue row; row 0 is padding.
        seen: items each user already had, duplicates allowed; None for no such items.
        user_block: users in a call; fewer where `count` is smaller, unless it is a `BlockShape`.

    Raises:
        EvaluationError: a vector is not finite, or so large that a score could overflow.
    """
    bound = largest_norm(item_vectors)
    fixed = user_block if isinstance(user_block, BlockShape) else BlockShape(min(user_block, count))
    inner = inner_block(fixed.users, rows_at_once(item_vectors))
    size = -(-fixed.users // inner) * inner
    capacity = max(pair_capacity(seen, inner), fixed.pairs)
    for start in range(0, count, size):
        stop = min(start + size, count)
        vectors = vectors_of(np.minimum(np.arange(start, start + size), count - 1))
        _check_users(vectors, bound, start)
        rows, items = _seen_pairs(seen, start, stop, inner, size // inner, capacity)
        yield UserBlock(start, stop - start, vectors, rows, items)


def array_producer(vectors: Float[Array, "user width"] | Float[np.ndarray, "user width"]) -> VectorsOf:
    """User vectors that are already there, as a producer."""
    held = jnp.asarray(vectors, jnp.float32)
    return lambda users: held[users]


def inner_block(users: int, rows: int, backend: str = "") -> int:
    """How many of `users` to score at once: a power of two, at least 8.

    Below 32 users a matrix product over a large catalogue waits for memory (a CPU took twice as long with 8), so that
    many are scored together even where their scores do not fit the cache.

    Args:
        users: of a call.
        rows: that each is scored against.
        backend: JAX's name of what will score them; "" is this process's own.
    """
    budget = SCORES_BYTES.get(backend or jax.default_backend(), SCORES_BYTES_ACCELERATOR)
    fitting = max(32, budget // (4 * rows))
    return min(2 ** int(math.log2(fitting)), 2 ** math.ceil(math.log2(max(users, 8))))


def pair_capacity(seen: Ragged | None, inner: int) -> int:
    """Pairs in the fullest inner block, rounded up to a power of two so that few shapes are compiled."""
    if seen is None or not len(seen):
        return 1
    edges = np.append(seen.offsets[:-1:inner], seen.offsets[-1])
    return 2 ** math.ceil(math.log2(max(np.diff(edges).max(), 1)))


def _seen_pairs(
    seen: Ragged | None, start: int, stop: int, inner: int, blocks: int, capacity: int
) -> tuple[Int32[np.ndarray, "inner pair"], Int32[np.ndarray, "inner pair"]]:
    """The distinct (user, item) pairs of users start to stop, one line an inner block."""
    rows = np.zeros((blocks, capacity), np.int32)
    items = np.zeros((blocks, capacity), np.int32)
    if seen is not None:
        offsets = seen.offsets[start : stop + 1]
        user = np.repeat(np.arange(stop - start, dtype=np.int64), np.diff(offsets))
        keys = np.unique(user << 32 | seen.values[offsets[0] : offsets[-1]])
        user, item = keys >> 32, keys & 0xFFFFFFFF
        block = user // inner
        place = np.arange(len(keys)) - np.searchsorted(block, np.arange(blocks))[block]
        rows[block, place] = user % inner
        items[block, place] = item
    return rows, items


def _check_users(vectors: Float[Array, "user width"], item_norm: float, start: int) -> None:
    norms = np.asarray(jnp.linalg.norm(vectors, axis=1))
    with np.errstate(over="ignore"):
        broken = np.flatnonzero(~np.isfinite(norms * np.float32(item_norm)))
    if len(broken):
        raise EvaluationError(
            f"{len(broken)} users have scores that are not finite, first in examples "
            f"{(start + broken[:5]).tolist()}: look for NaN in the checkpoint or for empty histories"
        )
