"""What a step of sequential recommendation reads, and what of it a device of a mesh needs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from mmrec_jax.row_exchange import message_rows, rows_of_others
from mmrec_jax.shards import Shards
from mmrec_jax.types import SequenceBatch


@struct.dataclass
class SequentialInputs:
    """What one step reads.

    Attributes:
        batch: the histories.
        candidates: catalogue rows to encode; padding is 0.
        positions: the batch's events as indices into `candidates`.
        read, targets: the event that each of the batch's steps reads, and the one that it is to predict, as indices
            into `candidates`; 0 for unused steps.
        rows: the batch's row of each step; any for unused ones.
        items: what the item encoder reads of the candidates.
        log_popularity: of the candidates.
        num_items: of the catalogue.
    """

    batch: SequenceBatch
    candidates: Int[Array, " candidate"]
    positions: Int[Array, "batch length_and_target"]
    read: Int[Array, " step"]
    targets: Int[Array, " step"]
    rows: Int[Array, " step"]
    items: Any
    log_popularity: Float[Array, " candidate"]
    num_items: int = struct.field(pytree_node=False)


def at_steps(
    positions: Int[Array, "batch length_and_target"], steps: Int[Array, " step"]
) -> tuple[Int[Array, " step"], Int[Array, " step"], Int[Array, " step"]]:
    """`read`, `targets` and `rows` of `SequentialInputs`."""

    def chosen(events):
        return jnp.ravel(events).at[steps].get(mode="fill", fill_value=0)

    rows = jnp.minimum(steps // (positions.shape[1] - 1), positions.shape[0] - 1)
    return chosen(positions[:, :-1]), chosen(positions[:, 1:]), rows


def with_all_candidates(inputs: SequentialInputs, shards: Shards) -> SequentialInputs:
    """The inputs of a device with what the loss reads of the candidates of all: one message."""
    popularity = lax.bitcast_convert_type(inputs.log_popularity, jnp.int32)
    every = shards.gathered(jnp.stack([inputs.candidates, inputs.batch.counts, popularity], axis=1))
    batch = replace(inputs.batch, counts=every[:, 1])
    popularity = lax.bitcast_convert_type(every[:, 2], jnp.float32)
    return replace(inputs, batch=batch, candidates=every[:, 0], log_popularity=popularity)


def of_own_users(
    inputs: SequentialInputs, vectors: Float[Array, "own width"], shards: Shards
) -> tuple[SequentialInputs, Float[Array, "needed width"]]:
    """The inputs and the vectors of those candidates alone that occur in a device's rows: as many as these have events.

    Args:
        inputs: of a device; its part of `candidates` and of what belongs to them.
        vectors: of that part.
        shards: of the mesh.
    """
    batch, places, rows = inputs.batch, inputs.positions, vectors.shape[0]
    every = rows * shards.batch_parts
    needed = min(places.size + 1, every)
    # The padding, place 0, is the first; what is left at the end is padding too.
    own, counts = jnp.unique(jnp.append(places, 0), return_counts=True, size=needed, fill_value=0)
    is_real = own > 0
    among = partial(jnp.searchsorted, jnp.where(is_real | (jnp.arange(needed) == 0), own, every))
    most = message_rows(needed, shards.batch_parts, rows)
    popularity = rows_of_others(inputs.log_popularity[:, None], own, shards.batch, most)[:, 0]
    inputs = replace(
        inputs,
        batch=replace(batch, counts=jnp.where(is_real, counts, 0)),
        # That there is one is all that is read of them.
        candidates=is_real.astype(jnp.int32),
        positions=among(places),
        read=among(inputs.read),
        targets=among(inputs.targets),
        log_popularity=popularity,
    )
    return inputs, rows_of_others(vectors, own, shards.batch, most, shards.messages)
