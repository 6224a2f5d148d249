"""Ladders of expert mixtures on the cached states of each modality (XSMoE, arXiv 2508.05993; papers.md 4 b)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrec_jax.adapters.mixture import Experts, gated_norms, last_rung, router, rung
from mmrec_jax.adapters.towers import BACKBONE, TowerSpec
from mmrec_jax.errors import ConfigError
from mmrec_jax.types import METRICS, HiddenStates

EXPERT = "expert_"  # and the number of its slot: name of an expert's gate
SAMPLED = 64  # items of a batch that utilisation is measured on; the mean over an epoch's batches is what is used


@dataclass(frozen=True)
class LadderConfig:
    """The ladders.

    Attributes:
        modalities: one ladder each. Of its states the first is where it begins; each other one is a rung.
        experts: of each rung to begin with, all of them trained. Growth freezes them: never are more trained at once.
        capacity: slots of each rung.
    """

    modalities: tuple[TowerSpec, ...]
    experts: int = 1
    capacity: int = 10

    def __post_init__(self):
        if not 1 <= self.experts <= self.capacity:
            raise ConfigError(f"model.experts={self.experts}: must lie in 1 to model.capacity={self.capacity}.")
        short = [spec.name for spec in self.modalities if spec.layers < 2]
        if short:
            raise ConfigError(
                f"modalities.{short[0]}: a ladder begins at the first of its layers and has a rung for each other one: "
                "select two or more."
            )


class Ladders(nn.Module):
    """One ladder a modality, whose rungs are mixtures of a backbone's state and bottleneck experts.

    Parameters `rung_<modality>_<n>`, n from 1: see `mmrec_jax/streaming/growth.py`, which edits them between trainings.

    Kept where the caller asks for the collection, one entry a rung `<modality>_<n>`:
    `METRICS`: `utilisation/<rung>`, share of each slot in the norm of the experts' gated outputs, over up to `SAMPLED`
    items (papers.md 4, item 7). `norms`: sums of these norms over all items that have the modality, and their number.
    `gates`, by modality: those of each rung.
    """

    config: LadderConfig

    @nn.compact
    def __call__(
        self, hidden: HiddenStates, heads: dict[str, Float[Array, "out width"]]
    ) -> dict[str, Float[Array, "item out"]]:
        """A linear map of the last state of each ladder (papers.md 4, items 2 to 5).

        Args:
            hidden: states of the items.
            heads: modality -> kernel of the map.
        """
        return {spec.name: self._ladder(spec, hidden, heads[spec.name]) for spec in self.config.modalities}

    def _ladder(self, spec: TowerSpec, hidden: HiddenStates, kernel) -> Float[Array, "item out"]:
        x, *backbone = hidden.values[spec.name]
        for n, state in enumerate(backbone, start=1):
            name = f"{spec.name}_{n}"
            experts = self._experts(name, spec)
            self._tell(spec.name, name, x, experts, hidden.present[spec.name])
            frozen = n == 1 and not hidden.trained
            if n == len(backbone):
                return last_rung(x, state, experts, kernel, self.config.experts, frozen)
            x = rung(x, state, experts, self.config.experts, frozen)
        raise AssertionError("a ladder has a rung")

    def _experts(self, name: str, spec: TowerSpec) -> Experts:
        """Parameters of a rung: experts N(0, 0.01²), the router as a linear layer of the authors' library, in use the
        first slots alone."""
        config = self.config
        used = jnp.arange(config.capacity) < config.experts
        sources = jnp.concatenate([jnp.ones(1, bool), used])

        def init(key: Array) -> dict[str, dict[str, Array]]:
            down_key, up_key, rows_key = jax.random.split(key, 3)
            shape = (config.capacity, spec.bottleneck, spec.width)
            bound = 1 / math.sqrt(spec.width)
            rows = jax.random.uniform(rows_key, (config.capacity + 1, spec.width), minval=-bound, maxval=bound)
            mask, row_mask = used.astype(jnp.float32), sources.astype(jnp.float32)
            return {
                "experts": {
                    "down": 0.01 * jax.random.normal(down_key, shape) * mask[:, None, None],
                    "up": 0.01 * jax.random.normal(up_key, shape) * mask[:, None, None],
                    "active": mask,
                    "trainable": mask,
                    "born": mask - 1,
                },
                "router": {"rows": rows * row_mask[:, None], "active": row_mask, "trainable": row_mask},
            }

        made = self.param(f"rung_{name}", init)
        experts, rows = made["experts"], made["router"]
        return Experts(experts["down"], experts["up"], rows["rows"], rows["active"], experts["trainable"])

    def _tell(self, modality: str, name: str, x, experts: Experts, present: Bool[Array, " item"]) -> None:
        """Keeps what the caller asked for."""
        if self.is_initializing():
            return
        x, experts = jax.lax.stop_gradient((x, experts))
        if self.is_mutable_collection(METRICS):
            every = max(len(x) // SAMPLED, 1)
            sums, _ = _sums(x[::every][:SAMPLED], experts, present[::every][:SAMPLED])
            self.sow(METRICS, f"utilisation/{name}", sums / jnp.maximum(jnp.sum(sums), 1e-30))
        if self.is_mutable_collection("norms"):
            self.sow("norms", name, _sums(x, experts, present))
        if self.is_mutable_collection("gates"):
            gates = router(x, experts)
            told = {f"{EXPERT}{slot}": gates[:, slot + 1] for slot in range(self.config.capacity)}
            self.sow("gates", modality, {BACKBONE: gates[:, 0]} | told)


def _sums(x, experts: Experts, present) -> tuple[Float[Array, " slot"], Float[Array, ""]]:
    """Norms of the gated outputs of each slot, summed over the items that have the modality, and how many those are."""
    norms = gated_norms(x, experts).astype(jnp.float32)
    return jnp.sum(jnp.where(present[:, None], norms, 0.0), axis=0), jnp.sum(present.astype(jnp.float32))
