"""Exact ranks and top-k lists over item vectors that are split by rows: each device scores its own, then they merge."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Int32

from mmrec_jax.evaluation.blocks import scores_of
from mmrec_jax.shards import Shards
from mmrec_jax.training.trees import placed


class RowCatalogue:
    """Item vectors by rows over a mesh, see `evaluation.catalogue.SplitCatalogue`."""

    def __init__(self, vectors: Float[Array, "filled_row width"], shards: Shards, rows: int):
        """
        Args:
            vectors: split as `Shards.rows` says, and filled up at the end to what the mesh divides.
            shards: of the mesh.
            rows: of the catalogue, without the filling.
        """
        self._vectors, self._shards, self._rows = vectors, shards, rows
        self._every = self._mask(np.ones(rows, bool))
        self._some: tuple[Any, Any] = (None, self._every)

    def _mask(self, candidates: Bool[np.ndarray, " row"]) -> Bool[Array, " filled_row"]:
        """Which rows are scored: neither the padding row nor the filling."""
        scored = np.zeros(self._vectors.shape[0], bool)
        scored[1 : self._rows] = candidates[1:]
        return placed(scored, self._shards.split(self._shards.rows, len(scored)))

    @property
    def shape(self) -> tuple[int, int]:
        """Catalogue rows and width."""
        return self._rows, self._vectors.shape[1]

    @property
    def rows_at_once(self) -> int:
        """Rows of a device."""
        return self._vectors.shape[0] // self._shards.row_parts

    def norms(self) -> Float[np.ndarray, " row"]:
        """Length of each row's vector."""
        return np.asarray(_norms(self._shards, self._vectors))[: self._rows]

    def ranked(
        self,
        vectors: Float[Array, "example width"],
        targets: Int[np.ndarray, " example"],
        pair_rows: Int32[np.ndarray, "inner pair"],
        pair_items: Int32[np.ndarray, "inner pair"],
        k: int,
        candidates: Bool[np.ndarray, " row"] | None = None,
    ) -> tuple[Int[Array, " example"], Int[Array, "example k"]]:
        """Ranks and lists of a block of users; lists without columns where k = 0."""
        if candidates is not self._some[0]:  # the same ones are asked for in every block
            self._some = candidates, self._every if candidates is None else self._mask(candidates)
        return rank_block(self._shards, k, self._vectors, self._some[1], vectors, targets, pair_rows, pair_items)

    def listed(
        self,
        vectors: Float[Array, "user width"],
        pair_rows: Int32[np.ndarray, "inner pair"],
        pair_items: Int32[np.ndarray, "inner pair"],
        k: int,
    ) -> tuple[Float[Array, "user k"], Int[Array, "user k"]]:
        """Scores and rows of the best k of a block of users."""
        return _list(self._shards, k, self._vectors, self._every, vectors, pair_rows, pair_items)


@partial(jax.jit, static_argnums=0)
def _norms(shards: Shards, vectors):
    return lax.with_sharding_constraint(jnp.linalg.norm(vectors, axis=1), shards.whole)


@partial(jax.jit, static_argnums=(0, 1))
def rank_block(shards: Shards, k: int, item_vectors, scored, vectors, targets, pair_rows, pair_items):
    def rank(own, scored, users, targets, pair_rows, pair_items):
        def inner(part):
            users, targets, pair_rows, pair_items = part
            scores = jnp.where(scored, scores_of(users, own), -jnp.inf)
            counted = _count(shards, scores, targets, pair_rows, pair_items)
            if not k:
                return counted, jnp.zeros((users.shape[0], 0), jnp.int32)
            return counted, _merged(shards, _without(shards, scores, pair_rows, pair_items), k)[1]

        blocks = pair_rows.shape[0]
        parts = users.reshape(blocks, -1, users.shape[1]), targets.reshape(blocks, -1), pair_rows, pair_items
        counted, items = lax.map(inner, parts)
        return counted.reshape(-1), items.reshape(len(users), k)

    return _over_rows(shards, rank)(item_vectors, scored, vectors, targets, pair_rows, pair_items)


@partial(jax.jit, static_argnums=(0, 1))
def _list(shards: Shards, k: int, item_vectors, scored, vectors, pair_rows, pair_items):
    def best(own, scored, users, pair_rows, pair_items):
        def inner(part):
            users, pair_rows, pair_items = part
            scores = jnp.where(scored, scores_of(users, own), -jnp.inf)
            return _merged(shards, _without(shards, scores, pair_rows, pair_items), k)

        parts = users.reshape(pair_rows.shape[0], -1, users.shape[1]), pair_rows, pair_items
        values, items = lax.map(inner, parts)
        return values.reshape(-1, k), items.reshape(-1, k)

    return _over_rows(shards, best)(item_vectors, scored, vectors, pair_rows, pair_items)


def _over_rows(shards: Shards, function):
    """The function over each device's item vectors and which of them are scored; everything else, and what it returns,
    is the same on all."""

    def mapped(item_vectors, scored, *others):
        rows = PartitionSpec(shards.rows or None)
        specs = (rows, rows, *(PartitionSpec() for _ in others))
        return jax.shard_map(
            function,
            mesh=shards.mesh,
            in_specs=specs,
            out_specs=(PartitionSpec(), PartitionSpec()),
            # What `all_gather` gives is the same on all devices, which the check cannot know.
            check_vma=False,
        )(item_vectors, scored, *others)

    return mapped


def _first(shards: Shards, length: int) -> Int[Array, ""] | int:
    """The catalogue row of this device's first vector."""
    return lax.axis_index(shards.rows) * length if shards.rows else 0


def _places(shards: Shards, scores, items) -> Int[Array, " item"]:
    """Where items lie among this device's; one past the end for those of others."""
    length = scores.shape[1]
    places = items - _first(shards, length)
    return jnp.where((places >= 0) & (places < length), places, length)


def _summed(shards: Shards, value):
    return lax.psum(value, shards.rows) if shards.rows else value


def _count(shards: Shards, scores, targets, pair_rows, pair_items) -> Int[Array, " user"]:
    """Ranks: the target's score is that of the device which has it, so that equal is equal."""
    users = jnp.arange(len(targets))
    own = scores.at[users, _places(shards, scores, targets)].get(mode="fill", fill_value=0.0)
    score = _summed(shards, own)
    counted = jnp.sum(scores >= score[:, None], axis=1, dtype=jnp.int32)
    found = scores.at[pair_rows, _places(shards, scores, pair_items)].get(mode="fill", fill_value=-jnp.inf)
    above = (pair_items != targets[pair_rows]) & (found >= score[pair_rows])
    return _summed(shards, counted.at[pair_rows].add(-above.astype(jnp.int32)))


def _without(shards: Shards, scores, pair_rows, pair_items) -> Float[Array, "user own"]:
    """The scores with -inf for items that users already had."""
    return scores.at[pair_rows, _places(shards, scores, pair_items)].set(-jnp.inf, mode="drop")


def _merged(shards: Shards, scores, k: int) -> tuple[Float[Array, "user k"], Int[Array, "user k"]]:
    """The best k of all devices. Of equal scores the lower row comes first, since devices have their rows in order."""
    length = scores.shape[1]
    values, places = lax.top_k(scores, min(k, length))
    items = places + _first(shards, length)
    if shards.rows:
        values = lax.all_gather(values, shards.rows, axis=1, tiled=True)
        items = lax.all_gather(items, shards.rows, axis=1, tiled=True)
    best, chosen = lax.top_k(values, k)
    rows = jnp.take_along_axis(items, chosen, axis=1)
    return best, jnp.where(jnp.isneginf(best), 0, rows).astype(jnp.int32)
