"""Softmax over a catalogue that is split by rows over the devices of a mesh."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.objectives import MASKED
from mmrec_jax.shards import Shards


def row_losses(
    shards: Shards,
    users: Float[Array, "step width"],
    vectors: Float[Array, "row width"],
    allowed: Bool[Array, " row"],
    targets: Int[Array, " step"],
    rows: Int[Array, " step"],
    seen: Int[Array, "batch event"] | None,
) -> Float[Array, " step"]:
    """Cross entropy of each step's target against all allowed rows, as `objectives.softmax_loss` gives it.

    Each device scores the users of all devices that it shares rows with by its own rows; the largest logit, the sum of
    exponentials and the target's logit of each step are all that moves beside the users.

    Args:
        shards: of the mesh.
        users: vectors at the steps, split as the batch is.
        vectors: of the catalogue, split by rows.
        allowed: rows that are negatives, split by rows.
        targets: catalogue row of each step's target.
        rows: each step's row among those of its device in `seen`.
        seen: catalogue rows that are no negatives of a batch row's steps; None where all are.
    """
    shared = tuple(axis for axis in shards.batch if axis in shards.rows)

    def gathered(array):
        return lax.all_gather(array, shared, tiled=True) if shared else array

    def losses(users, vectors, allowed, targets, rows, *seen):
        steps, length = users.shape[0], vectors.shape[0]
        number = lax.axis_index(shared) if shared else 0
        first = lax.axis_index(shards.rows) * length if shards.rows else 0
        everyone, wanted = gathered(users), gathered(targets)
        logits = everyone @ vectors.T
        negative = jnp.broadcast_to(allowed, logits.shape)
        if seen:
            batch_rows = seen[0].shape[0]
            places = gathered(seen[0]) - first
            places = jnp.where((places >= 0) & (places < length), places, length)
            unseen = jnp.broadcast_to(allowed, (places.shape[0], length))
            unseen = unseen.at[jnp.arange(places.shape[0])[:, None], places].set(False, mode="drop")
            negative = unseen[gathered(rows + number * batch_rows)]
        is_target = jnp.arange(length) + first == wanted[:, None]
        corrected = jnp.where(is_target | negative, logits, MASKED)
        largest = lax.stop_gradient(jnp.max(corrected, axis=1))
        positive = jnp.sum(jnp.where(is_target, corrected, 0.0), axis=1)
        if shards.rows:
            largest = lax.pmax(largest, shards.rows)
        total = jnp.sum(jnp.exp(corrected - largest[:, None]), axis=1)
        if shards.rows:
            total, positive = lax.psum((total, positive), shards.rows)
        every = jnp.log(total) + largest - positive
        return lax.dynamic_slice_in_dim(every, number * steps, steps)

    by_rows, by_batch = PartitionSpec(shards.rows or None), PartitionSpec(shards.batch or None)
    specs = (by_batch, by_rows, by_rows, by_batch, by_batch)
    arguments = (users, vectors, allowed, targets, rows)
    if seen is None:
        return shards.map(losses, specs, by_batch)(*arguments)
    return shards.map(losses, (*specs, by_batch), by_batch)(*arguments, seen)
