"""Losses and metrics of routers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrec_jax.fusion.routing import Choices


def mean_over(there: Bool[Array, " token"], values: Float[Array, "token value"]) -> Float[Array, " value"]:
    """The means of what the vectors that are there have; 0 where there is none."""
    return jnp.sum(jnp.where(there[:, None], values, 0.0), axis=0) / jnp.maximum(jnp.sum(there), 1)


def load_of(choices: Choices, there: Bool[Array, " token"], experts: int) -> Float[Array, " expert"]:
    """The part of all choices that asks for each expert, whether or not there was room."""
    asked = jnp.sum(choices.experts[..., None] == jnp.arange(experts), axis=(0, 1))
    return asked / jnp.maximum(jnp.sum(there) * choices.experts.shape[-1], 1)


def balance_loss(
    load: Float[Array, " expert"], probabilities: Float[Array, "token expert"], there: Bool[Array, " token"]
) -> Float[Array, ""]:
    """``E sum_e load_e mean(p_e)``: 1 for an even load, E where one expert gets everything (Switch Transformers,
    arXiv 2101.03961, equations 4 to 6, with the load of all `k` choices)."""
    return load.shape[0] * jnp.sum(load * mean_over(there, probabilities))


def z_loss(logits: Float[Array, "token expert"], there: Bool[Array, " token"]) -> Float[Array, ""]:
    """The mean of ``(log sum_e exp(logit_e))²`` (ST-MoE, arXiv 2202.08906, equation 5)."""
    return mean_over(there, jax.nn.logsumexp(logits, axis=-1, keepdims=True) ** 2)[0]


def entropy(probabilities: Float[Array, "token expert"], there: Bool[Array, " token"]) -> Float[Array, ""]:
    """The mean entropy of the routers' probabilities, in nats: log E where they are even."""
    terms = probabilities * jnp.log(jnp.maximum(probabilities, 1e-12))
    return -jnp.sum(mean_over(there, terms))
