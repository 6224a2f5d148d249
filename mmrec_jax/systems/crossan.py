"""CROSSAN (arXiv 2504.10307): side towers with cross-modal exchange, and mixture of modality expert fusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from mmrec_jax.adapters import CrossModalTowers, TowerConfig, TowerSpec
from mmrec_jax.adapters.towers import Head
from mmrec_jax.fusion import FusionConfig, fuse_modalities
from mmrec_jax.systems.registry import CatalogueShape, System
from mmrec_jax.types import HiddenStates, ItemVectors

if TYPE_CHECKING:
    from mmrec_jax.config import RunConfig


@dataclass(frozen=True)
class CrossanConfig:
    """Sizes and switches of the item encoder.

    Attributes:
        tower: the side towers.
        fusion: how the modality vectors become one.
        width: of the item vector (64 in the paper).
    """

    tower: TowerConfig
    fusion: FusionConfig
    width: int = 64


class Crossan(nn.Module):
    """The item encoder: hidden states of any number of modalities to one vector an item (papers.md 1.1, PROPOSAL)."""

    config: CrossanConfig

    @nn.compact
    def __call__(self, hidden: HiddenStates) -> ItemVectors:
        """Towers, a linear map of each tower's last state, fusion."""
        config = self.config
        heads = {spec.name: self._head(spec) for spec in config.tower.modalities}
        vectors = CrossModalTowers(config.tower, name="adapters")(hidden, heads)
        present = None if hidden.complete else jnp.stack([hidden.present[name] for name in vectors], axis=-1)
        return fuse_modalities(config.fusion, name="fusion")(vectors, present)

    def _head(self, spec: TowerSpec) -> Head:
        """The linear map of a tower's last state to the width of item vectors."""

        def init(key: Array) -> dict[str, Array]:
            lecun = nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)
            return {
                "kernel": lecun(key, (self.config.width, spec.width)),
                "bias": jnp.zeros(self.config.width),
            }

        head = self.param(f"project_{spec.name}", init)
        return head["kernel"], head["bias"]


def build(config: RunConfig, catalogue: CatalogueShape) -> Crossan:
    """The item encoder of a config."""
    model, bottlenecks = config.model, dict(config.model.bottlenecks)
    specs = tuple(
        TowerSpec(name, shape.width, shape.layers, bottlenecks.get(name, model.bottleneck))
        for name, shape in catalogue.states.items()
    )
    return Crossan(CrossanConfig(_towers(config, specs), config.fusion, model.width))


def _towers(config: RunConfig, specs: tuple[TowerSpec, ...]) -> TowerConfig:
    model = config.model
    return TowerConfig(
        specs, model.cross_source, model.gate, model.shared_gates, model.gate_temperature, model.activation
    )


SYSTEM = System(
    build,
    check=lambda config: _towers(config, tuple(TowerSpec(name, 1, 1) for name in config.modalities)),
    switches=(
        "bottleneck",
        "bottlenecks",
        "cross_source",
        "gate",
        "shared_gates",
        "gate_temperature",
        "activation",
    ),
)
