"""Fusion of the modality vectors of an item: MOMEF and the simpler forms it is compared with.

All kinds keep their parameters by modality, so that a model of fewer modalities is a subtree of one with more, and all
take a presence mask: an absent modality has weight exactly 0 and its vector is never read. `complete` promises that all
items have all modalities, so that only padding rows are masked, which nobody reads.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrec_jax.fusion.config import FusionConfig
from mmrec_jax.fusion.experts import Experts
from mmrec_jax.fusion.gate import Vectors, masked, masked_softmax, modality_weights, weighted
from mmrec_jax.types import ItemVectors


class Momef(nn.Module):
    """Mixture of modality expert fusion (CROSSAN, arXiv 2504.10307; papers.md 1.1, item 5: PROPOSAL).

    ``w = softmax(W_g [e^1; ..; e^n] / temperature)``, ``e = sum_x w_x E_x(e^x)``; absent modalities are masked.
    """

    config: FusionConfig

    @nn.compact
    def __call__(self, vectors: Vectors, present: Bool[Array, "item modality"], complete: bool = False) -> ItemVectors:
        """Fused vectors, and the gate's weights in the order of `vectors`."""
        width = next(iter(vectors.values())).shape[-1]
        experts = [self._expert(name, vector, width) for name, vector in vectors.items()]
        if len(vectors) == 1:
            return ItemVectors(experts[0], jnp.ones((*experts[0].shape[:-1], 1)))
        weights = modality_weights(self, vectors, None if complete else present, self.config.temperature)
        return ItemVectors(weighted(weights, experts), weights)

    def _expert(self, name: str, vector: Array, width: int) -> Array:
        if self.config.expert == "identity":
            return vector
        if self.config.expert == "linear":
            out = nn.Dense(width, name=f"expert_{name}")(vector)
        else:
            hidden = jax.nn.gelu(nn.Dense(width, name=f"expert_{name}_in")(vector), approximate=False)
            out = nn.Dense(width, name=f"expert_{name}_out")(hidden)
        return vector + out if self.config.residual else out


class Concat(nn.Module):
    """One linear map of the concatenated vectors (IISAN's ``W_c``; papers.md 1.0, item 7), one a modality."""

    config: FusionConfig

    @nn.compact
    def __call__(self, vectors: Vectors, present: Bool[Array, "item modality"], complete: bool = False) -> ItemVectors:
        """Fused vectors; the weights say each modality's share of the length of the summed parts."""
        width = next(iter(vectors.values())).shape[-1]
        bias = self.param("bias", nn.initializers.zeros, (width,))
        scale = nn.initializers.variance_scaling(1.0 / len(vectors), "fan_in", "truncated_normal")
        parts = [
            vector @ self.param(f"kernel_{name}", scale, (width, width))
            for name, vector in masked(vectors, None if complete else present).items()
        ]
        return ItemVectors(sum(parts) + bias, _shares_of_length(parts))


class Add(nn.Module):
    """The sum of the vectors, and a bias.

    Where the vectors are linear maps of states, this is one linear map of the concatenated states (XSMoE's ``W_c``;
    papers.md 4, item 5): `Concat` would put a square matrix behind each map, which can say nothing more.
    """

    config: FusionConfig

    @nn.compact
    def __call__(self, vectors: Vectors, present: Bool[Array, "item modality"], complete: bool = False) -> ItemVectors:
        """Fused vectors; the weights are those of `Concat`."""
        parts = list(masked(vectors, None if complete else present).values())
        bias = self.param("bias", nn.initializers.zeros, (parts[0].shape[-1],))
        return ItemVectors(sum(parts) + bias, _shares_of_length(parts))


class Sum(nn.Module):
    """The mean of the vectors of the modalities that are present."""

    config: FusionConfig

    @nn.compact
    def __call__(self, vectors: Vectors, present: Bool[Array, "item modality"], complete: bool = False) -> ItemVectors:
        """Fused vectors and equal weights."""
        first = next(iter(vectors.values()))
        weights = masked_softmax(jnp.zeros((*first.shape[:-1], len(vectors))), None if complete else present)
        return ItemVectors(weighted(weights, list(vectors.values())), weights)


class Attention(nn.Module):
    """A learned query attends to the modality vectors: ``softmax(q . tanh(K e^x) / temperature)``."""

    config: FusionConfig

    @nn.compact
    def __call__(self, vectors: Vectors, present: Bool[Array, "item modality"], complete: bool = False) -> ItemVectors:
        """Fused vectors and attention weights."""
        width = next(iter(vectors.values())).shape[-1]
        key = nn.Dense(width, name="key")
        query = self.param("query", nn.initializers.normal(0.02), (width,))
        logits = jnp.stack([jnp.tanh(key(vector)) @ query for vector in vectors.values()], axis=-1)
        weights = masked_softmax(logits / self.config.temperature, None if complete else present)
        return ItemVectors(weighted(weights, list(vectors.values())), weights)


FUSIONS: dict[str, type[nn.Module]] = {
    "momef": Momef,
    "experts": Experts,
    "concat": Concat,
    "add": Add,
    "sum": Sum,
    "attention": Attention,
}


def fuse_modalities(config: FusionConfig, name: str | None = None) -> nn.Module:
    """The fusion module of a config; call it with the vectors of each modality, their presence, and whether that is
    complete."""
    return FUSIONS[config.kind](config, name=name)


def _shares_of_length(parts: list[Float[Array, "item width"]]) -> Float[Array, "item part"]:
    """Share of each part in the sum of their lengths, not differentiated."""
    lengths = jnp.stack([jnp.linalg.norm(jax.lax.stop_gradient(part), axis=-1) for part in parts], axis=-1)
    return lengths / jnp.maximum(jnp.sum(lengths, axis=-1, keepdims=True), 1e-12)
