"""Utilisation of a ladder's experts as the paper's code measures it: evaluation counts too (papers.md 4 b2, item 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmrec_jax.training.items import SequentialFrozen
from mmrec_jax.training.scorer import ITEM_BLOCK
from mmrec_jax.training.sequential import SequentialRecommendation
from mmrec_jax.types import Params

PASSES = 2
"""Encodings of all items that follow an epoch's batches: for its validation, and for the test on the next window."""


def with_evaluations(
    task: SequentialRecommendation,
    params: Params,
    frozen: SequentialFrozen,
    trained: Mapping[str, Sequence[float]],
    encoded: int,
) -> dict[str, list[float]]:
    """Shares over a last epoch's batches and the evaluations after it.

    PROPOSAL: the sum over batches is that of their shares, at the mean norm that the evaluated items have; and the
    test's items are taken to be those of the validation, since the next window is not there yet.

    Args:
        task: with a ladder.
        params: of the epoch.
        frozen: states; rows of no item have no modality, and so no part in it.
        trained: rung -> share of each slot in the epoch's batches.
        encoded: items that these batches encoded.
    """
    rows = np.arange(frozen.log_popularity.shape[0], dtype=np.int32)
    padded = np.concatenate([rows, np.zeros(-len(rows) % ITEM_BLOCK, np.int32)]).reshape(-1, ITEM_BLOCK)
    blocks = [jax.device_get(_norms(task, params["items"], frozen, jnp.asarray(block))) for block in padded]
    found = {}
    for rung, shares in trained.items():
        sums = np.sum([block[rung][0] for block in blocks], axis=0, dtype=np.float64)
        each = sums.sum() / max(float(sum(block[rung][1] for block in blocks)), 1.0)
        total = np.asarray(shares) * encoded * each + PASSES * sums
        found[rung] = (total / max(total.sum(), 1e-30)).tolist()
    return found


@partial(jax.jit, static_argnums=0)
def _norms(task, params, frozen, rows) -> dict[str, tuple[Float[Array, " slot"], Float[Array, ""]]]:
    """Rung -> norms of each slot's gated outputs, summed over these rows, and how many rows have the modality."""
    encoder = task.item_encoder
    _, kept = encoder.module.apply({"params": params}, *encoder.inputs(frozen, rows), mutable=["norms"])
    return {name: values[0] for node in kept["norms"].values() for name, values in node.items()}
