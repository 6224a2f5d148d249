"""How much each expert of a ladder is used, measured outside training (XSMoE; papers.md 4, item 7)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from mmrec_jax.types import Params

if TYPE_CHECKING:
    from mmrec_jax.training.sequential import SequentialFrozen, SequentialRecommendation

BLOCK = 256  # rows of a call: the outputs of all slots are held for as many


def ladder_utilisation(
    task: SequentialRecommendation, params: Params, frozen: SequentialFrozen, rows: Int[np.ndarray, " item"]
) -> dict[str, Float[np.ndarray, " slot"]]:
    """Share of each slot in the mean norm of the experts' gated outputs ``||g_e E_e(x)||_2`` over given items.

    A training measures the same on a sample of its batches' items, and keeps it in its history; this is for items that
    no batch has, such as those that an evaluation encodes (the authors' code counts them too).

    Args:
        task: whose item encoder has ladders.
        params: of the task.
        frozen: what the task reads.
        rows: catalogue rows; items that lack a modality do not count for its ladder, and row 0 for none.

    Returns:
        Rung -> shares, which sum to 1; 0 for slots that are not in use, and everywhere where no item has the modality.
        Nothing for an item encoder without ladders.
    """
    frozen = task.computed(jax.device_put(params), frozen)
    padded = np.concatenate([rows, np.zeros(-len(rows) % BLOCK, rows.dtype)]).astype(np.int32)
    totals: dict[str, np.ndarray] = {}
    for part in padded.reshape(-1, BLOCK):
        for name, sums in jax.device_get(_norms(task, params, frozen, jnp.asarray(part))).items():
            totals[name] = totals.get(name, 0.0) + np.asarray(sums, np.float64)
    return {name: sums / max(sums.sum(), np.finfo(np.float64).tiny) for name, sums in totals.items()}


@partial(jax.jit, static_argnums=0)
def _norms(task, params, frozen, rows):
    encoder = task.item_encoder
    return {
        name: sums for name, (sums,) in encoder.kept("norms", params["items"], encoder.inputs(frozen, rows)).items()
    }
