"""MOMEF with several experts a modality: all of them, or the few that a router chooses."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrec_jax.fusion import measures
from mmrec_jax.fusion.config import FusionConfig
from mmrec_jax.fusion.exchange import chosen_experts
from mmrec_jax.fusion.feedforward import all_experts, expert_weights
from mmrec_jax.fusion.gate import Vectors, masked, modality_weights, weighted
from mmrec_jax.fusion.routing import Choices, choose, shares_of_all
from mmrec_jax.types import LOSSES, METRICS, TRAINING, ItemVectors


class Experts(nn.Module):
    """Mixture of modality expert fusion with E experts a modality (PROPOSAL: CROSSAN's paper has one).

    ``r^x = softmax(R_x e^x)``, ``e = sum_x w_x sum_j r^x_j E_xj(e^x)`` with the gate `w` of MOMEF; `top_k` of the
    experts of each modality take part. E = 1 is MOMEF.

    A call with the key `types.TRAINING` is a training step: there is jitter, and a routed expert computes at most its
    capacity. Elsewhere nothing is dropped, so that an item's vector does not depend on the items beside it.
    """

    config: FusionConfig

    @nn.compact
    def __call__(self, vectors: Vectors, present: Bool[Array, "item modality"], complete: bool = False) -> ItemVectors:
        """Fused vectors, and the gate's weights in the order of `vectors`."""
        config = self.config
        weights = modality_weights(self, vectors, None if complete else present, config.temperature)
        read = masked(vectors, None if complete else present)
        # Padding rows have no modality in a complete catalogue either: they must not take room.
        there = {name: present[:, column] for column, name in enumerate(read)}
        experts = {
            name: expert_weights(self, name, config.experts, vector.shape[-1], config.expert == "linear")
            for name, vector in read.items()
        }
        probabilities = {name: self._probabilities(name, vector, there[name]) for name, vector in read.items()}
        if config.top_k:
            choices = {name: self._choices(name, probabilities[name], there[name]) for name in read}
            probabilities = {name: shares_of_all(choices[name], config.experts) for name in read}
        if config.top_k and self.has_rng(TRAINING):
            outputs, kept = chosen_experts(read, choices, experts, config.capacity_factor, config.groups)
            for name, mask in kept.items():
                asked = jnp.sum(choices[name].experts < config.experts)
                self.sow(METRICS, f"choices_dropped_{name}", asked - jnp.sum(mask))
        else:
            outputs = {
                name: all_experts(vector, probabilities[name].astype(vector.dtype), experts[name])
                for name, vector in read.items()
            }
        fused = [vector + outputs[name] if config.residual else outputs[name] for name, vector in read.items()]
        return ItemVectors(weighted(weights, fused), weights)

    def _probabilities(
        self, name: str, vector: Float[Array, "item width"], there: Bool[Array, " item"]
    ) -> Float[Array, "item expert"]:
        """What the modality's router gives to each of its experts."""
        config = self.config
        # In float32 whatever the products' type: a small error changes which experts are chosen.
        read = vector.astype(jnp.float32)
        if config.jitter and self.has_rng(TRAINING):
            low, high = 1 - config.jitter, 1 + config.jitter
            read = read * jax.random.uniform(self.make_rng(TRAINING), read.shape, minval=low, maxval=high)
        # A tenth of the usual variance: Switch Transformers (arXiv 2101.03961), section 2.4.
        small = nn.initializers.variance_scaling(0.1, "fan_in", "truncated_normal")
        router = self.param(f"router_{name}", small, (vector.shape[-1], config.experts))
        logits = read @ router.astype(jnp.float32)
        probabilities = jax.nn.softmax(logits, axis=-1)
        self.sow(METRICS, f"router_entropy_{name}", measures.entropy(probabilities, there))
        if config.top_k:
            self._lose(f"router_z_{name}", config.z_weight, measures.z_loss(logits, there))
        else:
            self._tell_load(name, measures.mean_over(there, probabilities))
        return probabilities

    def _choices(self, name: str, probabilities: Float[Array, "item expert"], there: Bool[Array, " item"]) -> Choices:
        """The experts of each vector; none for absent ones."""
        config = self.config
        choices = choose(probabilities, there, config.top_k, config.renormalise)
        load = measures.load_of(choices, there, config.experts)
        self._tell_load(name, load)
        balance = measures.balance_loss(load, probabilities, there)
        self._lose(f"router_balance_{name}", config.balance_weight, balance)
        return choices

    def _tell_load(self, name: str, load: Float[Array, " expert"]) -> None:
        """Metrics of the experts' parts of all vectors; an even load is 1."""
        # Numbers, which are written at each log step, where an array would be told once an epoch.
        for number in range(self.config.experts):
            self.sow(METRICS, f"expert_load_{name}/{number}", load[number] * self.config.experts)
        self.sow(METRICS, f"expert_load_max_{name}", jnp.max(load) * self.config.experts)
        self.sow(METRICS, f"expert_load_min_{name}", jnp.min(load) * self.config.experts)
        self.sow(METRICS, f"experts_dead_{name}", jnp.sum(load == 0))

    def _lose(self, name: str, weight: float, value: Float[Array, ""]) -> None:
        """Adds to the task's loss; the metric of the same name has no weight."""
        self.sow(LOSSES, name, weight * value)
        self.sow(METRICS, name, value)
