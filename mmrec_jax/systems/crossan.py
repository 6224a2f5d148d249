"""CROSSAN (arXiv 2504.10307): side towers with cross-modal exchange, and mixture of modality expert fusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

from mmrec_jax.adapters import CrossModalTowers, TowerConfig, TowerSpec
from mmrec_jax.adapters.blocks import linear
from mmrec_jax.adapters.standardise import Standardise
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
        standardise: bring the hidden states of all layers to one scale first.
    """

    tower: TowerConfig
    fusion: FusionConfig
    width: int = 64
    standardise: bool = False


class Crossan(nn.Module):
    """The item encoder: hidden states of any number of modalities to one vector an item (papers.md 1.1, PROPOSAL)."""

    config: CrossanConfig

    @nn.compact
    def __call__(self, hidden: HiddenStates) -> ItemVectors:
        """Towers, a linear map of each tower's last state, fusion."""
        config = self.config
        if config.standardise:
            hidden = Standardise(name="standardise")(hidden)
        heads = {
            spec.name: linear(self, f"project_{spec.name}", spec.width, config.width)
            for spec in config.tower.modalities
        }
        vectors = CrossModalTowers(config.tower, name="adapters")(hidden, heads)
        present = jnp.stack([hidden.present[name] for name in vectors], axis=-1)
        return fuse_modalities(config.fusion, name="fusion")(vectors, present, hidden.complete)


def towers_of(config: RunConfig, catalogue: CatalogueShape) -> TowerConfig:
    """The towers that a config asks for."""
    model, bottlenecks = config.model, dict(config.model.bottlenecks)
    specs = tuple(
        TowerSpec(name, shape.width, shape.layers, bottlenecks.get(name, model.bottleneck))
        for name, shape in catalogue.states.items()
    )
    return TowerConfig(
        specs, model.cross_source, model.gate, model.shared_gates, model.gate_temperature, model.activation
    )


def check(config: RunConfig) -> None:
    """Refuses what no states could make possible."""
    towers_of(config, CatalogueShape.of_layers(config))


def build(config: RunConfig, catalogue: CatalogueShape) -> Crossan:
    """The item encoder of a config."""
    model = config.model
    return Crossan(CrossanConfig(towers_of(config, catalogue), config.fusion, model.width, model.standardise))


SYSTEM = System(
    build,
    check=check,
    fusion="momef",
    switches=(
        "bottleneck",
        "bottlenecks",
        "cross_source",
        "gate",
        "shared_gates",
        "gate_temperature",
        "activation",
        "standardise",
    ),
)
