"""User and item vectors of a trained task over a mesh, for evaluation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from mmrec_jax.parallel.placement import MeshPlacement
from mmrec_jax.parallel.topk import RowCatalogue
from mmrec_jax.shards import Shards
from mmrec_jax.store.table import StateTable
from mmrec_jax.training.items import SequentialFrozen
from mmrec_jax.training.scorer import ITEM_BLOCK
from mmrec_jax.training.sequential import SequentialRecommendation
from mmrec_jax.training.trees import placed
from mmrec_jax.types import Params


class MeshScorer:
    """Encodes the catalogue where its rows lie, then users on demand; every process gets all of their vectors."""

    def __init__(
        self, task: SequentialRecommendation, params: Params, frozen: SequentialFrozen, placement: MeshPlacement
    ) -> None:
        """Encodes all rows of the catalogue.

        Args:
            task: of a mesh.
            params: of the task, on the host or where a training has them.
            frozen: as `Run.frozen` has it, or where a training has it.
            placement: of the mesh.
        """
        assert task.shards is not None
        self._task, self._shards = task, task.shards
        self._params = placement.state(params)
        if frozen.live is not None:
            # Each process encodes its own rows by itself: it needs all of the weights, those of other processes too.
            own = NamedSharding(Mesh(np.asarray(self._shards.own_devices), ("own",)), PartitionSpec())
            weights = jax.device_put(placement.readable(frozen.live.backbones), own)
            embedded = {"embedded": jax.device_put(placement.readable(params.get("embedded", {})), own)}
            live = replace(frozen.live, backbones=weights)
            frozen = placement.catalogue(task.computed(embedded, replace(frozen, live=live)))
        else:
            frozen = placement.catalogue(frozen)
        self._vectors = _encoded(task, self._params, frozen)
        self._scored = RowCatalogue(_score_vectors(task, self._vectors), self._shards.divided, frozen.num_rows)

    def item_vectors(self) -> RowCatalogue:
        """Vectors to score with, by rows."""
        return self._scored

    def user_vectors(self, inputs: Int[np.ndarray, "user length"]) -> Float[Array, "user width"]:
        """Vectors of users by their last items, on every device."""
        shards = self._shards
        return encode_users(
            self._task, self._params, self._vectors, placed(inputs, shards.split(shards.batch, len(inputs)))
        )


def _encoded(
    task: SequentialRecommendation, params: Params, frozen: SequentialFrozen
) -> Float[Array, "filled_row width"]:
    """Vectors of all rows, `Shards.divided`: each device encodes a block of its own at a time."""
    assert task.shards is not None
    shards = task.shards.divided
    own = frozen.log_popularity.shape[0] // shards.row_parts
    block = min(ITEM_BLOCK, own)
    vectors: Any = None
    for start in range(0, own, block):
        # The last block reaches back where there are too few rows left for it.
        first = placed(np.int32(min(start, own - block)), shards.whole)
        found = encode_block(task, block, params, frozen, first)
        if vectors is None:
            vectors = _zeros(shards, own * shards.row_parts, found.shape[1])
        vectors = _written(shards, vectors, found, first)
    return vectors


@partial(jax.jit, static_argnums=(0, 1))
def encode_block(task, block, params, frozen, first):
    held, shards = task.shards, task.shards.divided
    rows, own = PartitionSpec(shards.rows or None), frozen.log_popularity.shape[0] // shards.row_parts
    further = shards.rows[len(held.rows) :]

    def cut(arrays, first):
        # Of the rows that a device holds it computes those of its own part.
        start = first + (lax.axis_index(further) * own if further else 0)
        return jax.tree.map(lambda array: lax.dynamic_slice_in_dim(array, start, block), arrays)

    def numbers(first):
        device = lax.axis_index(shards.rows) if shards.rows else 0
        return device * own + first + jnp.arange(block, dtype=jnp.int32)

    items = shards.map(numbers, (PartitionSpec(),), rows)(first)
    items = jnp.where(items < frozen.num_rows, items, 0)
    states = None
    if frozen.states is not None:
        table = frozen.states
        arrays = (table.values, table.scales, table.present)
        where = PartitionSpec(held.rows or None), PartitionSpec()
        values, scales, present = shards.map(cut, where, rows)(arrays, first)
        states = StateTable(values, scales, present, table.complete).whole()
    vectors = task.item_vectors(params, task.item_encoder.given(states, items)).vector
    return lax.with_sharding_constraint(vectors, NamedSharding(shards.mesh, rows))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(shards: Shards, rows: int, width: int):
    return lax.with_sharding_constraint(jnp.zeros((rows, width)), shards.split(shards.rows, rows))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _written(shards: Shards, vectors, block, first):
    rows = PartitionSpec(shards.rows or None)
    return shards.map(
        lambda whole, part, first: lax.dynamic_update_slice_in_dim(whole, part, first, axis=0),
        (rows, rows, PartitionSpec()),
        rows,
    )(vectors, block, first)


@partial(jax.jit, static_argnums=0)
def _score_vectors(task, vectors):
    return task.score_vectors(vectors)


@partial(jax.jit, static_argnums=0)
def encode_users(task, params, vectors, inputs):
    shards: Shards = task.shards.divided
    (read,) = shards.take((vectors,), inputs.reshape(-1))
    users = task.users_of(params, read.reshape(*inputs.shape, -1), inputs > 0)
    return lax.with_sharding_constraint(users, shards.whole)
