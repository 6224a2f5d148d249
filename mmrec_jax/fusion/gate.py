"""The gate among modalities, and sums of their vectors that never read an absent one."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrec_jax.adapters.gates import MASKED

Vectors = dict[str, Float[Array, "item width"]]
Presence = Bool[Array, "item modality"] | None
"""Whether each item has each modality; None where every item has all."""


def modality_weights(
    module: nn.Module, vectors: Vectors, present: Presence, temperature: float
) -> Float[Array, "item modality"]:
    """``softmax(W_g [e^1; ..; e^n] / temperature)`` with the parameters of a module; 1 for a single modality, which
    needs none."""
    first = next(iter(vectors.values()))
    if len(vectors) == 1:
        return jnp.ones((first.shape[0], 1))
    # One small kernel a modality instead of one [n * width, n] matrix: adding a modality only adds parameters.
    logits = sum(
        jnp.stack(
            [
                vector @ module.param(f"gate_{target}_from_{name}", nn.initializers.zeros, (first.shape[-1],))
                for target in vectors
            ],
            axis=-1,
        )
        for name, vector in masked(vectors, present).items()
    )
    bias = jnp.stack([module.param(f"gate_{name}_bias", nn.initializers.zeros, ()) for name in vectors])
    return masked_softmax((logits + bias) / temperature, present)


def masked(vectors: Vectors, present: Presence) -> Vectors:
    """Vectors with those of absent modalities replaced by zeros."""
    if present is None:
        return vectors
    return {name: jnp.where(present[:, i, None], vector, 0.0) for i, (name, vector) in enumerate(vectors.items())}


def masked_softmax(logits: Float[Array, "item modality"], present: Presence) -> Float[Array, "item modality"]:
    """Softmax among the modalities that are present; exactly 0 for the others."""
    if present is None:
        return jax.nn.softmax(logits, axis=-1)
    return jnp.where(present, jax.nn.softmax(jnp.where(present, logits, MASKED), axis=-1), 0.0)


def weighted(
    weights: Float[Array, "item modality"], vectors: list[Float[Array, "item width"]]
) -> Float[Array, "item width"]:
    """``sum_x weights[x] * vectors[x]``."""
    parts = [weights[:, i, None] * vector for i, vector in enumerate(vectors)]
    return sum(parts[1:], parts[0])
