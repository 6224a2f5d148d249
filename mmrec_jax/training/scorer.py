"""User and item vectors of a trained sequential task, for evaluation and serving."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mmrec_jax.adapters.ladder import EXPERT
from mmrec_jax.training.items import SequentialFrozen
from mmrec_jax.training.sequential import SequentialRecommendation
from mmrec_jax.types import ItemVectors, Params

ITEM_BLOCK = 1024  # rows encoded by one call: a tower's states of one block stay in a core's cache


class SequentialScorer:
    """Encodes the whole catalogue once, then users on demand; the score is the dot product.

    Attributes:
        encoded: item vectors as the user encoder reads them, and fusion weights, one row a catalogue row.
        frozen: what was encoded, the states of live backbones with these parameters among it.
    """

    def __init__(self, task: SequentialRecommendation, params: Params, frozen: SequentialFrozen) -> None:
        """Encodes all rows of the catalogue."""
        self._task, self._params = task, jax.device_put(params)
        rows = frozen.log_popularity.shape[0]
        self.frozen = task.computed(self._params, frozen)
        self.encoded = encode_rows(task, self._params, self.frozen, np.arange(rows, dtype=np.int32))
        self._scored = task.score_vectors(self.encoded.vector)

    def item_vectors(self) -> Float[Array, "row width"]:
        """Vectors to score with."""
        return self._scored

    def user_vectors(self, inputs: Int[np.ndarray, "user length"]) -> Float[Array, "user width"]:
        """Vectors of users by their last items: catalogue rows in time order, padded with 0 on the left."""
        return encode_users(self._task, self._params, self.encoded.vector, jnp.asarray(inputs))

    def extend(self, encoded: ItemVectors) -> None:
        """Appends further items to the catalogue."""
        self.encoded = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), self.encoded, encoded)
        self._scored = self._task.score_vectors(self.encoded.vector)


def tower_gates(
    task: SequentialRecommendation, params: Params, frozen: SequentialFrozen, rows: Int[np.ndarray, " item"]
) -> dict[str, dict[str, Float[np.ndarray, "item block"]]]:
    """Gates of the side towers: tower -> source (`backbone`, `from_<modality>`) -> weight at each block.

    0 stands where a tower had no such source at a block; a system without gates has no towers. Slots for experts that
    no block uses (`expert_<slot>`) are no sources.
    """
    towers = _gates(task, params, read_inputs(task, frozen, jnp.asarray(rows)))
    result = {}
    for target, blocks in towers.items():
        sources = list(dict.fromkeys(source for block in blocks for source in block))
        result[target] = {
            source: np.stack(
                [np.broadcast_to(np.asarray(block.get(source, 0.0)), rows.shape) for block in blocks], axis=1
            )
            for source in sources
        }
        unused = [source for source, values in result[target].items() if source.startswith(EXPERT) and not values.any()]
        for source in unused:
            del result[target][source]
    return result


@partial(jax.jit, static_argnums=0)
def _gates(task, params, inputs):
    return task.item_encoder.gates(params["items"], inputs)


def encode_rows(
    task: SequentialRecommendation, params: Params, frozen: SequentialFrozen, rows: Int[np.ndarray, " item"]
) -> ItemVectors:
    """Item vectors of catalogue rows, encoded block by block in one compiled shape."""
    block = min(ITEM_BLOCK, len(rows))
    padded = np.concatenate([rows, np.zeros(-len(rows) % block, np.int32)])
    parts = []
    for part in map(jnp.asarray, padded.reshape(-1, block)):
        parts.append(encode_items(task, params, read_inputs(task, frozen, part)))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[: len(rows)], *parts)


@partial(jax.jit, static_argnums=0)  # a program of its own, for the reason given at `task.Task.inputs`
def read_inputs(task, frozen, rows):
    return task.item_encoder.inputs(frozen, rows)


@partial(jax.jit, static_argnums=0)
def encode_items(task, params, inputs) -> ItemVectors:
    return task.item_vectors(params, inputs)


@partial(jax.jit, static_argnums=0)
def encode_users(task, params, vectors, inputs) -> Float[Array, "user width"]:
    return task.user_vectors(params, vectors, inputs)
