"""Exact ranks of held-out items over the whole catalogue, by counting."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from mmrec_jax.data.ragged import Ragged
from mmrec_jax.errors import EvaluationError
from mmrec_jax.evaluation.blocks import BlockShape, VectorsOf, array_producer, scores_of, user_blocks
from mmrec_jax.evaluation.catalogue import ItemVectorsOf, SplitCatalogue
from mmrec_jax.evaluation.topk import check_k, masked_top_k

MISS = np.iinfo(np.int32).max
"""Rank of a held-out item that cannot be recommended: below every cut-off."""


class RankedBlock(NamedTuple):
    """Ranks of consecutive examples from `start` on, and their top-k lists (no columns where k = 0)."""

    start: int
    ranks: Int32[np.ndarray, " example"]
    items: Int32[np.ndarray, "example k"]


def ranks(
    user_vectors: Float[Array, "example width"] | Float[np.ndarray, "example width"],
    item_vectors: Float[Array, "row width"],
    targets: Int[np.ndarray, " example"],
    seen: Ragged | None = None,
    *,
    user_block: int = 1024,
) -> Int32[np.ndarray, " example"]:
    """The rank of each target among all items by dot product, 1 being the best.

    The rank is the number of items whose score is at least the target's (the target itself counts once, so
    ties are ranked pessimistically), without the padding row 0 and without the user's `seen` items other than
    the target.
    """
    producer = array_producer(user_vectors)
    return np.concatenate(
        [b.ranks for b in ranked_blocks(producer, item_vectors, targets, seen, user_block=user_block)]
    )


def ranked_blocks(
    vectors_of: VectorsOf,
    item_vectors: ItemVectorsOf,
    targets: Int[np.ndarray, " example"],
    seen: Ragged | None = None,
    *,
    k: int = 0,
    user_block: int | BlockShape = 1024,
    candidates: Bool[np.ndarray, " row"] | None = None,
) -> Iterator[RankedBlock]:
    """`ranks` block by block, from a producer of user vectors, with the top-k lists of the same scores.

    Args:
        vectors_of: example numbers -> user vectors, see `blocks.user_blocks`.
        item_vectors: one a catalogue row; row 0 is padding.
        targets: catalogue row of each example's held-out item.
        seen: items each example's user already had, duplicates allowed: they take no place in the ranking,
            the target itself excepted, and do not enter the lists, the target not excepted. None for no mask.
        k: length of the lists; 0 for none.
        user_block: examples in a call. It does not change the ranks, up to the rounding of the scores.
        candidates: rows that are ranked, every target among them; None for all but the padding.

    Raises:
        ConfigError: k is larger than the catalogue.
        EvaluationError: scores are not finite, or a target is no candidate.
    """
    if k:
        check_k(k, item_vectors.shape[0] - 1)
    if candidates is not None and not candidates[targets].all():
        raise EvaluationError(f"{int((~candidates[targets]).sum())} held-out items are not among the candidates")
    ranked = None if candidates is None else jnp.asarray(candidates)
    for block in user_blocks(vectors_of, len(targets), item_vectors, seen, user_block):
        held_out = np.zeros(len(block.vectors), np.int32)
        held_out[: block.count] = targets[block.start : block.start + block.count]
        pairs = block.pair_rows, block.pair_items
        if isinstance(item_vectors, SplitCatalogue):
            counted, items = item_vectors.ranked(block.vectors, held_out, *pairs, k, candidates)
        else:
            counted, items = rank_block(block.vectors, item_vectors, held_out, *pairs, ranked, k=k)
        yield RankedBlock(block.start, np.asarray(counted)[: block.count], np.asarray(items)[: block.count])


@partial(jax.jit, static_argnames="k")
def rank_block(
    vectors: Float[Array, "example width"],
    item_vectors: Float[Array, "row width"],
    targets: Int[Array, " example"],
    pair_rows: Int[Array, "inner pair"],
    pair_items: Int[Array, "inner pair"],
    candidates: Bool[Array, " row"] | None,
    *,
    k: int,
) -> tuple[Int[Array, " example"], Int[Array, "example k"]]:
    def inner(part: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        users, held_out, rows, items = part
        scores = scores_of(users, item_vectors)
        if candidates is not None:
            scores = jnp.where(candidates, scores, -jnp.inf)
        counted = _count_ranks(scores, held_out, rows, items)
        if not k:
            return counted, jnp.zeros((len(users), 0), jnp.int32)
        return counted, masked_top_k(scores, rows, items, k)[1]

    inner_blocks = pair_rows.shape[0]
    users = vectors.reshape(inner_blocks, -1, vectors.shape[1])
    counted, items = jax.lax.map(inner, (users, targets.reshape(inner_blocks, -1), pair_rows, pair_items))
    return counted.reshape(-1), items.reshape(len(vectors), k)


def _count_ranks(
    scores: Float[Array, "user row"],
    targets: Int[Array, " user"],
    pair_rows: Int[Array, " pair"],
    pair_items: Int[Array, " pair"],
) -> Int[Array, " user"]:
    """Ranks from the scores themselves: the target's score is read from them, so that equal is equal."""
    score = jnp.take_along_axis(scores, targets[:, None], axis=1)
    at_least = jnp.sum(scores >= score, axis=1, dtype=jnp.int32) - (scores[:, 0] >= score[:, 0])
    others = (pair_items > 0) & (pair_items != targets[pair_rows])
    above = others & (scores[pair_rows, pair_items] >= score[pair_rows, 0])
    return at_least.at[pair_rows].add(-above.astype(jnp.int32))
