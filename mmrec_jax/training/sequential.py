"""The task of sequential recommendation: item encoder + user encoder + objective, trained on next items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from mmrec_jax.objectives import (
    ObjectiveConfig,
    gbce_loss,
    in_batch_correction,
    sampled_softmax_loss,
    softmax_loss,
    uniform_negatives,
)
from mmrec_jax.sequence import SasRec, SasRecConfig
from mmrec_jax.store.table import StateTable
from mmrec_jax.systems.config import ScoringConfig
from mmrec_jax.types import ItemVectors, Params, SequenceBatch


@struct.dataclass
class SequentialFrozen:
    """What the task reads and never trains.

    Attributes:
        states: hidden states of the catalogue; None for encoders by id.
        log_popularity: log of each catalogue row's share of the training events.
    """

    states: StateTable | None
    log_popularity: Float[Array, " row"]


class ItemEncoder(Protocol):
    """Item vectors of catalogue rows."""

    def init(self, rng: Array, frozen: SequentialFrozen) -> Params:
        """Parameters of the encoder."""

    def __call__(self, params: Params, frozen: SequentialFrozen, rows: Int[Array, " item"]) -> ItemVectors:
        """Vectors of the given catalogue rows."""


@dataclass(frozen=True)
class ContentItems:
    """An item encoder that reads hidden states, such as `systems.Crossan`."""

    module: nn.Module

    def init(self, rng, frozen):
        """Parameters of the module for the table's modalities and widths."""
        return self.module.init(rng, frozen.states.rows(jnp.zeros(1, jnp.int32)))["params"]

    def __call__(self, params, frozen, rows):
        """Gathers the rows' states and encodes them."""
        return self.module.apply({"params": params}, frozen.states.rows(rows))

    def gates(self, params, frozen, rows) -> dict[str, tuple[dict[str, Array], ...]]:
        """Gates of each tower: modality -> one dict a block, source -> scalar or one value a row."""
        _, kept = self.module.apply({"params": params}, frozen.states.rows(rows), mutable=["gates"])
        return kept["gates"]["adapters"]


@dataclass(frozen=True)
class IdItems:
    """An item encoder by id: `systems.IdTable`."""

    module: nn.Module

    def init(self, rng, frozen):
        """A fresh table."""
        return self.module.init(rng, jnp.zeros(1, jnp.int32))["params"]

    def __call__(self, params, frozen, rows):
        """Looks the rows up."""
        return self.module.apply({"params": params}, rows)


@dataclass(frozen=True, eq=False)  # hashed by identity: jitted functions take the task as a static argument
class SequentialRecommendation:
    """Next-item prediction over a catalogue (papers.md 1.0, items 8 and 9).

    Attributes:
        item_encoder: rows of the catalogue to vectors.
        user: sizes of the user encoder.
        objective: the loss.
        scoring: how vectors make a score.
        modalities: names of the fusion weights' columns.
        compute_dtype: of the item encoder's products; parameters and the user encoder stay float32.
        validator: metrics of given parameters on the validation split; None where the task is not trained.
    """

    item_encoder: ItemEncoder
    user: SasRecConfig
    objective: ObjectiveConfig
    scoring: ScoringConfig
    modalities: tuple[str, ...] = ()
    compute_dtype: str = "float32"
    validator: Callable[[SequentialRecommendation, Params, SequentialFrozen], dict[str, float]] | None = None

    name = "sequential recommendation"

    def validate(self, params: Params, frozen: SequentialFrozen) -> dict[str, float]:
        """Metrics on the validation split."""
        if self.validator is None:
            raise ValueError("this task was built without a validator")
        return self.validator(self, params, frozen)

    def init(self, rng: Array, frozen: SequentialFrozen) -> Params:
        """Fresh parameters: `items`, `users`, and `scale` where it is learned."""
        item_rng, user_rng = jax.random.split(rng)
        history = jnp.zeros((1, self.user.length, self.user.width))
        params = {
            "items": self.item_encoder.init(item_rng, frozen),
            "users": SasRec(self.user).init(
                user_rng, history, jnp.ones((1, self.user.length), bool), train=False
            )["params"],
        }
        if self.scoring.learn_scale:
            params["scale"] = {"log": jnp.log(jnp.float32(self.scoring.scale))}
        return params

    def loss(
        self, params: Params, frozen: SequentialFrozen, batch: SequenceBatch, rng: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean loss over the positions that have a target, and metrics of the fusion weights."""
        rng, sample_rng = jax.random.split(rng)
        candidates, position = self._candidates(frozen, batch, sample_rng)
        encoded = self.item_vectors(params, frozen, candidates)
        vectors = encoded.vector
        inputs, targets = position[:, :-1], position[:, 1:]
        mask = batch.positions[:, :-1] > 0
        users = SasRec(self.user).apply(
            {"params": params["users"]}, vectors[inputs], mask, train=True, rngs={"dropout": rng}
        )
        users, vectors = self._scored(params, users, vectors)
        losses = self._losses(users, vectors, candidates, position, targets, frozen, batch)
        loss = jnp.sum(jnp.where(mask, losses, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
        return loss, self._fusion_metrics(encoded, candidates)

    def _candidates(self, frozen, batch, rng):
        """Catalogue rows to encode, and the batch's positions as indices into them."""
        if self.objective.candidates == "batch":
            return batch.items, batch.positions
        if self.objective.candidates == "sampled":
            rows = frozen.log_popularity.shape[0] - 1
            drawn = uniform_negatives(rng, self.objective.negatives, rows)
            return jnp.concatenate([batch.items, drawn]), batch.positions
        return jnp.arange(frozen.log_popularity.shape[0], dtype=jnp.int32), batch.items[batch.positions]

    def _losses(
        self, users, vectors, candidates, position, targets, frozen, batch
    ) -> Float[Array, "batch step"]:
        """Loss of every position, padding included."""
        config = self.objective
        if config.candidates == "sampled":
            distinct = batch.items.shape[0]
            positive = jnp.sum(users * vectors[targets], axis=-1)
            negative = users @ vectors[distinct:].T
            drawn = candidates[distinct:]
            own = jnp.any(batch.items[batch.positions][:, :, None] == drawn, axis=1)
            allowed = jnp.broadcast_to(~own[:, None] if config.mask_history else drawn > 0, negative.shape)
            if config.kind == "sampled_softmax":
                return sampled_softmax_loss(positive, negative, allowed)
            calibration = config.calibration if config.kind == "gbce" else 0.0
            return gbce_loss(positive, negative, allowed, frozen.log_popularity.shape[0] - 1, calibration)
        logits = users @ vectors.T
        allowed = jnp.broadcast_to(candidates > 0, (position.shape[0], candidates.shape[0]))
        if config.mask_history:
            allowed = allowed.at[jnp.arange(position.shape[0])[:, None], position].set(False)
        bias = 0.0, 0.0
        if config.kind == "in_batch_softmax":
            bias = in_batch_correction(batch.counts, frozen.log_popularity[candidates], config.log_q)
        return softmax_loss(logits, targets, allowed[:, None], *bias)

    def _scored(self, params, users, items):
        """Vectors whose dot product is the score."""
        if self.scoring.similarity == "dot":
            return users, items
        scale = jnp.exp(params["scale"]["log"]) if self.scoring.learn_scale else self.scoring.scale
        return scale * _unit(users), _unit(items)

    def _fusion_metrics(self, encoded: ItemVectors, candidates):
        """Mean fusion weight of each modality over the batch's distinct items, and the mean entropy of the weights."""
        if encoded.weights is None or len(self.modalities) < 2:
            return {}
        real = (candidates > 0)[:, None]
        weights = jax.lax.stop_gradient(encoded.weights)
        count = jnp.maximum(jnp.sum(real), 1)
        mean = jnp.sum(jnp.where(real, weights, 0.0), axis=0) / count
        entropy = -jnp.sum(jnp.where(real, weights * jnp.log(jnp.maximum(weights, 1e-12)), 0.0)) / count
        return {f"weight_{name}": mean[i] for i, name in enumerate(self.modalities)} | {
            "weight_entropy": entropy
        }

    def item_vectors(
        self, params: Params, frozen: SequentialFrozen, rows: Int[Array, " item"]
    ) -> ItemVectors:
        """Item vectors of catalogue rows as the user encoder reads them (not yet scaled for scoring)."""
        dtype = jnp.dtype(self.compute_dtype)
        if dtype == jnp.float32:
            return self.item_encoder(params["items"], frozen, rows)
        cast = jax.tree.map(lambda leaf: leaf.astype(dtype), params["items"])
        encoded = self.item_encoder(cast, frozen, rows)
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), encoded)

    def score_vectors(self, vectors: Float[Array, "row width"]) -> Float[Array, "row width"]:
        """Item vectors whose dot product with `user_vectors` is the score."""
        return _unit(vectors) if self.scoring.similarity == "cosine" else vectors

    def user_vectors(
        self, params: Params, vectors: Float[Array, "row width"], histories: Int[Array, "batch length"]
    ) -> Float[Array, "batch width"]:
        """User vectors after the last item of left-padded histories of catalogue rows, scaled for scoring."""
        users = SasRec(self.user).apply(
            {"params": params["users"]}, vectors[histories], histories > 0, train=False
        )[:, -1]
        return self._scored(params, users, users)[0]


def _unit(x: Float[Array, "... width"]) -> Float[Array, "... width"]:
    """`x` with rows of length one; the small constant keeps the gradient of a zero row finite."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
