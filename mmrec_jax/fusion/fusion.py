"""Fusion of the modality vectors of an item: MOMEF and the simpler forms it is compared with.

All kinds keep their parameters by modality, so that a model of fewer modalities is a subtree of one with more, and all
take a presence mask: an absent modality has weight exactly 0 and its vector is never read.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrec_jax.adapters.gates import MASKED
from mmrec_jax.errors import ConfigError
from mmrec_jax.types import ItemVectors


@dataclass(frozen=True)
class FusionConfig:
    """How modality vectors become one item vector.

    Attributes:
        kind: `momef` (mixture of modality expert fusion), `concat` (one linear map of the concatenation), `add` (the
            sum of the vectors and a bias), `sum` (mean of the present vectors) or `attention` (one learned query).
        expert: of `momef`: `mlp` (linear, GELU, linear), `linear` or `identity`.
        temperature: of the softmax gate of `momef` and `attention`.
        residual: of `momef`: experts are added to the modality vector they read.
    """

    kind: str = "momef"
    expert: str = "mlp"
    temperature: float = 1.0
    residual: bool = False

    def __post_init__(self):
        for field, allowed in (("kind", tuple(FUSIONS)), ("expert", ("mlp", "linear", "identity"))):
            if getattr(self, field) not in allowed:
                raise ConfigError(f"fusion.{field}={getattr(self, field)!r}: choose one of {', '.join(allowed)}.")
        if self.temperature <= 0:
            raise ConfigError(f"fusion.temperature={self.temperature}: must be above 0.")


class Momef(nn.Module):
    """Mixture of modality expert fusion (CROSSAN, arXiv 2504.10307; papers.md 1.1, item 5: PROPOSAL).

    ``w = softmax(W_g [e^1; ..; e^n] / temperature)``, ``e = sum_x w_x E_x(e^x)``; absent modalities are masked.
    """

    config: FusionConfig

    @nn.compact
    def __call__(
        self, vectors: dict[str, Float[Array, "item width"]], present: Bool[Array, "item modality"] | None
    ) -> ItemVectors:
        """Fused vectors, and the gate's weights in the order of `vectors`."""
        width = next(iter(vectors.values())).shape[-1]
        experts = [self._expert(name, vector, width) for name, vector in vectors.items()]
        if len(vectors) == 1:
            return ItemVectors(experts[0], jnp.ones((*experts[0].shape[:-1], 1)))
        # One small kernel a modality instead of one [n * width, n] matrix: adding a modality only adds parameters.
        logits = sum(
            jnp.stack(
                [
                    masked @ self.param(f"gate_{target}_from_{name}", nn.initializers.zeros, (width,))
                    for target in vectors
                ],
                axis=-1,
            )
            for name, masked in _masked(vectors, present).items()
        )
        bias = jnp.stack([self.param(f"gate_{name}_bias", nn.initializers.zeros, ()) for name in vectors])
        weights = _masked_softmax((logits + bias) / self.config.temperature, present)
        return ItemVectors(_weighted(weights, experts), weights)

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
    def __call__(
        self, vectors: dict[str, Float[Array, "item width"]], present: Bool[Array, "item modality"] | None
    ) -> ItemVectors:
        """Fused vectors; the weights say each modality's share of the length of the summed parts."""
        width = next(iter(vectors.values())).shape[-1]
        bias = self.param("bias", nn.initializers.zeros, (width,))
        scale = nn.initializers.variance_scaling(1.0 / len(vectors), "fan_in", "truncated_normal")
        parts = [
            vector @ self.param(f"kernel_{name}", scale, (width, width))
            for name, vector in _masked(vectors, present).items()
        ]
        return ItemVectors(sum(parts) + bias, _shares_of_length(parts))


class Add(nn.Module):
    """The sum of the vectors, and a bias.

    Where the vectors are linear maps of states, this is one linear map of the concatenated states (XSMoE's ``W_c``;
    papers.md 4, item 5): `Concat` would put a square matrix behind each map, which can say nothing more.
    """

    config: FusionConfig

    @nn.compact
    def __call__(
        self, vectors: dict[str, Float[Array, "item width"]], present: Bool[Array, "item modality"] | None
    ) -> ItemVectors:
        """Fused vectors; the weights are those of `Concat`."""
        parts = list(_masked(vectors, present).values())
        bias = self.param("bias", nn.initializers.zeros, (parts[0].shape[-1],))
        return ItemVectors(sum(parts) + bias, _shares_of_length(parts))


class Sum(nn.Module):
    """The mean of the vectors of the modalities that are present."""

    config: FusionConfig

    @nn.compact
    def __call__(
        self, vectors: dict[str, Float[Array, "item width"]], present: Bool[Array, "item modality"] | None
    ) -> ItemVectors:
        """Fused vectors and equal weights."""
        first = next(iter(vectors.values()))
        weights = _masked_softmax(jnp.zeros((*first.shape[:-1], len(vectors))), present)
        return ItemVectors(_weighted(weights, list(vectors.values())), weights)


class Attention(nn.Module):
    """A learned query attends to the modality vectors: ``softmax(q . tanh(K e^x) / temperature)``."""

    config: FusionConfig

    @nn.compact
    def __call__(
        self, vectors: dict[str, Float[Array, "item width"]], present: Bool[Array, "item modality"] | None
    ) -> ItemVectors:
        """Fused vectors and attention weights."""
        width = next(iter(vectors.values())).shape[-1]
        key = nn.Dense(width, name="key")
        query = self.param("query", nn.initializers.normal(0.02), (width,))
        logits = jnp.stack([jnp.tanh(key(vector)) @ query for vector in vectors.values()], axis=-1)
        weights = _masked_softmax(logits / self.config.temperature, present)
        return ItemVectors(_weighted(weights, list(vectors.values())), weights)


FUSIONS: dict[str, type[nn.Module]] = {"momef": Momef, "concat": Concat, "add": Add, "sum": Sum, "attention": Attention}


def fuse_modalities(config: FusionConfig, name: str | None = None) -> nn.Module:
    """The fusion module of a config; call it with the vectors of each modality and the presence mask or None."""
    return FUSIONS[config.kind](config, name=name)


def _shares_of_length(parts):
    """Share of each part in the sum of their lengths, not differentiated."""
    lengths = jnp.stack([jnp.linalg.norm(jax.lax.stop_gradient(part), axis=-1) for part in parts], axis=-1)
    return lengths / jnp.maximum(jnp.sum(lengths, axis=-1, keepdims=True), 1e-12)


def _masked(vectors, present):
    """Vectors with those of absent modalities replaced by zeros."""
    if present is None:
        return vectors
    return {name: jnp.where(present[:, i, None], vector, 0.0) for i, (name, vector) in enumerate(vectors.items())}


def _masked_softmax(logits, present):
    if present is None:
        return jax.nn.softmax(logits, axis=-1)
    return jnp.where(present, jax.nn.softmax(jnp.where(present, logits, MASKED), axis=-1), 0.0)


def _weighted(weights, vectors):
    return sum(weights[:, i, None] * vector for i, vector in enumerate(vectors))
