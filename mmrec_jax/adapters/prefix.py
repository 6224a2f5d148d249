"""Learned tokens: keys and values in each block (prefix), or tokens at the input (prompt)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Prefix(nn.Module):
    """``mixed + tanh(gate) softmax(q K^T / sqrt(f)) V`` with learned keys and values of each head.

    Prefix tuning (arXiv 2101.00190) with the attention to the prefix normalised by itself and a gate a head that starts
    as zero (LLaMA-Adapter, arXiv 2303.16199, section 3.2), so that the start is the pretrained backbone. Keys are not
    rotated.
    """

    tokens: int

    @nn.compact
    def __call__(
        self, query: Float[Array, "batch token head feature"], mixed: Float[Array, "batch token head feature"]
    ) -> Float[Array, "batch token head feature"]:
        heads, features = query.shape[2:]
        shape, normal = (self.tokens, heads, features), nn.initializers.normal(0.02)
        key, value = (self.param(name, normal, shape).astype(query.dtype) for name in ("keys", "values"))
        gate = jnp.tanh(self.param("gate", nn.initializers.zeros, (heads,)))
        scores = jnp.einsum("bqhf,phf->bqhp", query, key, preferred_element_type=jnp.float32) * features**-0.5
        shares = jax.nn.softmax(scores, axis=-1) * gate[:, None]
        return mixed + jnp.einsum("bqhp,phf->bqhf", shares.astype(mixed.dtype), value)


class Prompt(nn.Module):
    """Learned tokens that join those of the input (arXiv 2104.08691; 2203.12119 for images), without positions.

    They take a share of the attention from the first step on: the start is near the pretrained backbone, and not it.
    """

    tokens: int

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch token width"], outputs: Float[Array, "batch token width"]
    ) -> Float[Array, "batch extra width"]:
        width = outputs.shape[-1]
        learned = self.param("tokens", nn.initializers.normal(0.02), (self.tokens, width))
        return jnp.broadcast_to(learned.astype(outputs.dtype), (outputs.shape[0], self.tokens, width))
