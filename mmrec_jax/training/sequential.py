"""The task of sequential recommendation: item encoder + user encoder + objective, trained on next items."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.adapters.standardise import cast, in_products_of
from mmrec_jax.live.catalogue import LiveBackbones
from mmrec_jax.objectives import (
    ObjectiveConfig,
    gbce_loss,
    in_batch_correction,
    sampled_softmax_loss,
    softmax_loss,
    uniform_negatives,
)
from mmrec_jax.sequence import GruConfig, SasRecConfig, user_encoder
from mmrec_jax.sequence.steps import BatchPart
from mmrec_jax.sharded_softmax import row_losses
from mmrec_jax.shards import Shards
from mmrec_jax.systems.config import ScoringConfig
from mmrec_jax.training.inputs import SequentialInputs, at_steps, of_own_users, with_all_candidates
from mmrec_jax.training.items import ItemEncoder, SequentialFrozen
from mmrec_jax.types import HiddenStates, ItemVectors, Params, SequenceBatch


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
        live: backbones that are run in the step.
        shards: of a step over the devices of a mesh.
        validator: metrics of given parameters on the validation split; None where the task is not trained.
    """

    item_encoder: ItemEncoder
    user: SasRecConfig | GruConfig
    objective: ObjectiveConfig
    scoring: ScoringConfig
    modalities: tuple[str, ...] = ()
    compute_dtype: str = "float32"
    live: LiveBackbones | None = None
    shards: Shards | None = None
    validator: Callable[[SequentialRecommendation, Params, SequentialFrozen], dict[str, float]] | None = None

    name = "sequential recommendation"

    def validate(self, params: Params, frozen: SequentialFrozen) -> dict[str, float]:
        """Metrics on the validation split."""
        if self.validator is None:
            raise ValueError("this task was built without a validator")
        return self.validator(self, params, frozen)

    def init(self, rng: Array, frozen: SequentialFrozen) -> Params:
        """Parameters to begin with: `items`, `users`, `scale` where it is learned, `embedded` inside live backbones."""
        item_rng, user_rng = jax.random.split(rng)
        embedded: Params = {}
        if self.live is not None:
            assert frozen.states is not None
            assert frozen.live is not None
            embedded = self.live.init(jax.random.fold_in(rng, 2), frozen.live.start)
            frozen = replace(frozen, states=self.live.blank(frozen.states))
        history, mask = jnp.zeros((1, self.user.length, self.user.width)), jnp.ones((1, self.user.length), bool)
        params = {
            "items": self.item_encoder.init(item_rng, frozen),
            "users": user_encoder(self.user).init(user_rng, history, mask, train=False)["params"],
        }
        if self.scoring.learn_scale:
            params["scale"] = {"log": jnp.log(jnp.float32(self.scoring.scale))}
        return params | {"embedded": embedded} if embedded else params

    def inputs(self, frozen: SequentialFrozen, batch: SequenceBatch, rng: Array) -> SequentialInputs:
        """The batch, the rows to encode for it, and their hidden states."""
        candidates, positions, num_items = batch.items, batch.positions, frozen.num_rows - 1
        if self.objective.candidates == "sampled":
            drawn = uniform_negatives(jax.random.split(rng)[1], self.objective.negatives, num_items)
            candidates = jnp.concatenate([candidates, drawn])
        elif self.objective.candidates == "catalogue":
            every = jnp.arange(frozen.log_popularity.shape[0], dtype=jnp.int32)
            candidates, positions = jnp.where(every <= num_items, every, 0), batch.items[batch.positions]
        shards = self.shards
        states, popularity = self._of_candidates(frozen, candidates)
        found: Callable = at_steps
        if shards is not None:
            split = PartitionSpec(shards.batch)
            positions = shards.by_batch(positions)
            found = shards.map(at_steps, (split, split), (split, split, split))
        read, targets, rows = found(positions, batch.steps)
        return SequentialInputs(
            batch=batch,
            candidates=candidates,
            positions=positions,
            read=read,
            targets=targets,
            rows=rows,
            items=self.item_encoder.given(states, candidates),
            log_popularity=popularity,
            num_items=num_items,
        )

    @property
    def _by_rows(self) -> bool:
        """Whether all of the catalogue is scored, each row where it lies."""
        return self.shards is not None and self.objective.candidates == "catalogue"

    def _of_candidates(
        self, frozen: SequentialFrozen, candidates: Int[Array, " candidate"]
    ) -> tuple[HiddenStates | None, Float[Array, " candidate"]]:
        """Their hidden states, and the log of their share of the events."""
        states, popularity, shards = frozen.states, frozen.log_popularity, self.shards
        if self._by_rows:
            return None if states is None else states.whole(), popularity
        own = shards is not None and shards.encode == "own" and self.objective.candidates == "batch"
        read = None if states is None else states.rows(candidates, own)
        if shards is None:
            return read, popularity[candidates]
        return read, shards.take((popularity,), candidates, own)[0]

    def loss(
        self, params: Params, frozen: SequentialFrozen, inputs: SequentialInputs, rng: Array
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ...]]]:
        """Mean loss over the steps of the batch with the encoder's own losses, and metrics of the encoder."""
        states = self._with_live_states(params, frozen, inputs, rng)
        train = partial(self.item_encoder.train, key=jax.random.fold_in(rng, 4))
        with contextlib.nullcontext() if self.shards is None else self.shards.traced():
            encoded, added = self._in_compute_dtype(train, params["items"], states)
        read = replace(inputs, items=None, batch=replace(inputs.batch, media={}))
        others = {name: part for name, part in params.items() if name in ("users", "scale")}
        key = jax.random.split(rng)[0]
        if self.shards is None:
            whole = BatchPart(0, inputs.positions.shape[0])
            total, count = self._summed_losses(others, encoded.vector, read, key, whole)
        elif self._by_rows:
            total, count = self._summed_by_rows(others, encoded.vector, read, key)
        else:
            total, count = self._summed_over_devices(others, encoded.vector, read, key)
        loss = sum(added.losses.values(), start=total / jnp.maximum(count, 1))
        return loss, self._fusion_metrics(encoded, inputs.candidates) | added.metrics

    def _summed_losses(
        self,
        params: Params,
        vectors: Float[Array, "candidate width"],
        inputs: SequentialInputs,
        key: Array,
        part: BatchPart,
    ) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """Sum of the losses of the steps, and how many there are."""
        users = self._users(params, vectors[inputs.read], inputs, key, part)
        users, vectors = self._scored(params, users, vectors)
        losses = self._losses(users, vectors, inputs)
        is_step = inputs.read > 0
        return jnp.sum(jnp.where(is_step, losses, 0.0)), jnp.sum(is_step)

    def _users(self, params: Params, read: Float[Array, "step width"], inputs: SequentialInputs, key, part: BatchPart):
        """Vectors of the users at each step, by those of the items that the steps read."""
        return user_encoder(self.user).apply(
            {"params": params["users"]},
            read,
            inputs.batch.positions[:, :-1] > 0,
            train=True,
            steps=inputs.batch.steps,
            part=part,
            rngs={"dropout": key},
        )

    def _summed_by_rows(self, params, vectors, inputs: SequentialInputs, key):
        """The same over all of the catalogue, which stays where it is: each device scores all users by its own rows."""
        shards = self.shards
        assert shards is not None
        total_rows = inputs.positions.shape[0]
        split, whole = PartitionSpec(shards.batch), PartitionSpec()
        vectors = lax.with_sharding_constraint(vectors, shards.split(shards.rows, vectors.shape[0]))
        (read,) = shards.take((vectors,), inputs.read)

        def users_of(params, read, positions, steps, key):
            params = lax.pcast(params, shards.batch, to="varying")
            own = replace(inputs, batch=replace(inputs.batch, positions=positions, steps=steps))
            part = BatchPart(lax.axis_index(shards.batch) * positions.shape[0], total_rows)
            return self._users(params, read, own, key, part)

        batch = inputs.batch
        specs = (whole, split, split, split, whole)
        users = shards.map(users_of, specs, split)(params, read, batch.positions, batch.steps, key)
        users, vectors = self._scored(params, users, vectors)
        losses = row_losses(
            shards,
            users,
            vectors,
            inputs.candidates > 0,
            inputs.targets,
            inputs.rows,
            inputs.positions if self.objective.mask_history else None,
        )
        is_step = inputs.read > 0
        return jnp.sum(jnp.where(is_step, losses, 0.0)), jnp.sum(is_step)

    def _summed_over_devices(self, params, vectors, inputs: SequentialInputs, key):
        """The same of a batch that is split: every device has its own users, and the vectors of all candidates or, for
        local negatives, of those that its users have."""
        shards = self.shards
        assert shards is not None
        total_rows, divides = inputs.positions.shape[0], vectors.shape[0] % shards.batch_parts == 0
        of_batch = self.objective.candidates == "batch" and divides
        local = of_batch and bool(shards.batch) and shards.negatives == "local"

        def summed(params, vectors, inputs, key):
            # From here on they are each device's own: their gradients are summed once, at this place, and each device
            # gets those of the vectors that it encoded.
            params = lax.pcast(params, shards.batch, to="varying")
            if local:
                inputs, vectors = of_own_users(inputs, vectors, shards)
            elif divides:
                dtype, sent = vectors.dtype, vectors.astype(shards.messages)
                vectors = shards.gathered(sent).astype(dtype)
            else:
                vectors = lax.pcast(vectors, shards.batch, to="varying")
            if of_batch and not local:
                inputs = with_all_candidates(inputs, shards)
            own = inputs.positions.shape[0]
            part = BatchPart(lax.axis_index(shards.batch) * own, total_rows)
            return lax.psum(self._summed_losses(params, vectors, inputs, key, part), shards.batch)

        split, whole = PartitionSpec(shards.batch), PartitionSpec()
        given = split if divides else whole
        specs = jax.tree.map(lambda _: split, inputs)
        if not of_batch:
            batch = replace(specs.batch, items=whole, counts=whole)
            specs = replace(specs, batch=batch, candidates=whole, log_popularity=whole)
        return shards.map(summed, (whole, given, specs, whole), (whole, whole))(params, vectors, inputs, key)

    def _with_live_states(self, params, frozen, inputs: SequentialInputs, rng) -> Any:
        """What the item encoder reads, with the states that backbones give in the step."""
        if self.live is None:
            return inputs.items
        trained, media, key = params.get("embedded", {}), inputs.batch.media, jax.random.fold_in(rng, 3)
        return tuple(
            self.live.states(trained, frozen.live, media, part, key, self.shards)
            if isinstance(part, HiddenStates)
            else part
            for part in inputs.items
        )

    def computed(self, params: Params, frozen: SequentialFrozen) -> SequentialFrozen:
        """The same with the states that live backbones give to the whole catalogue in the table: nothing is left to
        compute, and nothing is kept from earlier parameters. A host function."""
        if self.live is None or frozen.live is None:
            return frozen
        assert frozen.states is not None
        table = self.live.table(params.get("embedded", {}), frozen.live, frozen.states, self.shards)
        return replace(frozen, states=table, live=None)

    def _losses(self, users, vectors, inputs: SequentialInputs) -> Float[Array, " step"]:
        """Loss of every step, the unused ones included."""
        config, positions, targets = self.objective, inputs.positions, inputs.targets
        if config.candidates == "sampled":
            items = inputs.batch.items
            drawn = inputs.candidates[items.shape[0] :]
            positive = jnp.sum(users * vectors[targets], axis=-1)
            negative = users @ vectors[items.shape[0] :].T
            own = jnp.any(items[positions][:, :, None] == drawn, axis=1)
            allowed = ~own[inputs.rows] if config.mask_history else jnp.broadcast_to(drawn > 0, negative.shape)
            if config.kind == "sampled_softmax":
                return sampled_softmax_loss(positive, negative, allowed)
            calibration = config.calibration if config.kind == "gbce" else 0.0
            return gbce_loss(positive, negative, allowed, inputs.num_items, calibration)
        allowed = jnp.broadcast_to(inputs.candidates > 0, (positions.shape[0], inputs.candidates.shape[0]))
        if config.mask_history:
            allowed = allowed.at[jnp.arange(positions.shape[0])[:, None], positions].set(False)
        bias: tuple = (0.0, 0.0)
        if config.kind == "in_batch_softmax":
            bias = in_batch_correction(inputs.batch.counts, inputs.log_popularity, config.log_q)
        return softmax_loss(users @ vectors.T, targets, allowed[inputs.rows], *bias)

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
        return {f"weight_{name}": mean[i] for i, name in enumerate(self.modalities)} | {"weight_entropy": entropy}

    def item_vectors(self, params: Params, inputs: Any) -> ItemVectors:
        """Item vectors as the user encoder reads them (not yet scaled for scoring).

        Args:
            params: of the task.
            inputs: what `item_encoder.inputs` gave.
        """
        return self._in_compute_dtype(self.item_encoder, params["items"], inputs)

    def _in_compute_dtype(self, encode: Callable[[Params, Any], Any], params: Params, inputs: Any) -> Any:
        """What an encoder gives, whose products are in `compute_dtype`, as float32."""
        dtype = jnp.dtype(self.compute_dtype)
        if dtype == jnp.float32:
            return encode(params, inputs)
        return cast(encode(*in_products_of(dtype, params, inputs)), jnp.float32)

    def score_vectors(self, vectors: Float[Array, "row width"]) -> Float[Array, "row width"]:
        """Item vectors whose dot product with `user_vectors` is the score."""
        return _unit(vectors) if self.scoring.similarity == "cosine" else vectors

    def user_vectors(
        self, params: Params, vectors: Float[Array, "row width"], histories: Int[Array, "batch length"]
    ) -> Float[Array, "batch width"]:
        """User vectors after the last item of left-padded histories of catalogue rows, scaled for scoring."""
        return self.users_of(params, vectors[histories], histories > 0)

    def users_of(
        self, params: Params, items: Float[Array, "batch length width"], real: Bool[Array, "batch length"]
    ) -> Float[Array, "batch width"]:
        """The same of the histories' item vectors; `real` is False for padding."""
        states = user_encoder(self.user).apply({"params": params["users"]}, items, real, train=False)
        users = jnp.asarray(states)[:, -1]
        return self._scored(params, users, users)[0]


def _unit(x: Float[Array, "... width"]) -> Float[Array, "... width"]:
    """`x` with rows of length one; the small constant keeps the gradient of a zero row finite."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)
