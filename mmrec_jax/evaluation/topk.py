"""Exact top-k lists. Evaluation and serving share them."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from mmrec_jax.data.ragged import Ragged
from mmrec_jax.errors import ConfigError
from mmrec_jax.evaluation.blocks import VectorsOf, scores_of, user_blocks
from mmrec_jax.evaluation.catalogue import ItemVectorsOf, SplitCatalogue


def check_k(k: int, num_items: int) -> None:
    """Raise ConfigError unless a catalogue of `num_items` items can fill a list of `k`."""
    if k < 1:
        raise ConfigError(f"k = {k}: a list has at least one item")
    if k > num_items:
        raise ConfigError(f"k = {k} is larger than the catalogue of {num_items} items: choose k <= {num_items}")


def masked_top_k(
    scores: Float[Array, "user row"], pair_rows: Int[Array, " pair"], pair_items: Int[Array, " pair"], k: int
) -> tuple[Float[Array, "user k"], Int[Array, "user k"]]:
    """The k best scores of each row and their catalogue rows, best first; of equal scores the lower catalogue
    row first.

    The padding row 0 and the given (row of `scores`, item) pairs are left out. Where fewer than k items are
    left, the list ends in item 0 with score -inf. Traceable. `jax.lax.top_k` selects without sorting the row;
    searching only the blocks of largest maximum saves 8 to 20% on a CPU, too little for the code it takes.
    """
    allowed = scores.at[pair_rows, pair_items].set(-jnp.inf).at[:, 0].set(-jnp.inf)
    values, items = jax.lax.top_k(allowed, k)
    return values, jnp.where(jnp.isneginf(values), 0, items)


def top_items(
    vectors_of: VectorsOf,
    count: int,
    item_vectors: ItemVectorsOf,
    k: int,
    seen: Ragged | None = None,
    user_block: int = 1024,
) -> tuple[Int32[np.ndarray, "user k"], Float32[np.ndarray, "user k"]]:
    """The k best items of each user over the whole catalogue, best first, and their scores.

    Args:
        vectors_of: user numbers -> user vectors, see `blocks.user_blocks`.
        count: number of users.
        item_vectors: one a catalogue row, row 0 is padding and never listed.
        k: length of the lists.
        seen: items that must not be listed for a user; None lists any.
        user_block: users in a call.

    Returns:
        Catalogue rows and scores; a user with fewer than k unseen items gets row 0 with score -inf at the
        end.

    Raises:
        ConfigError: k is larger than the catalogue.
        EvaluationError: scores are not finite.
    """
    check_k(k, item_vectors.shape[0] - 1)
    items = np.zeros((count, k), np.int32)
    scores = np.zeros((count, k), np.float32)
    for block in user_blocks(vectors_of, count, item_vectors, seen, user_block):
        if isinstance(item_vectors, SplitCatalogue):
            values, rows = item_vectors.listed(block.vectors, block.pair_rows, block.pair_items, k)
        else:
            values, rows = _list_block(block.vectors, item_vectors, block.pair_rows, block.pair_items, k=k)
        stop = block.start + block.count
        items[block.start : stop] = np.asarray(rows)[: block.count]
        scores[block.start : stop] = np.asarray(values)[: block.count]
    return items, scores


@partial(jax.jit, static_argnames="k")
def _list_block(
    vectors: Float[Array, "user width"],
    item_vectors: Float[Array, "row width"],
    pair_rows: Int[Array, "inner pair"],
    pair_items: Int[Array, "inner pair"],
    *,
    k: int,
) -> tuple[Float[Array, "user k"], Int[Array, "user k"]]:
    def inner(part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        users, rows, items = part
        return masked_top_k(scores_of(users, item_vectors), rows, items, k)

    users = vectors.reshape(pair_rows.shape[0], -1, vectors.shape[1])
    values, items = jax.lax.map(inner, (users, pair_rows, pair_items))
    return values.reshape(-1, k), items.reshape(-1, k)
