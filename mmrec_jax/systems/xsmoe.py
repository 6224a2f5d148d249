"""XSMoE (arXiv 2508.05993): ladders of expert mixtures that grow and are pruned along a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

from mmrec_jax.adapters.ladder import LadderConfig, Ladders
from mmrec_jax.adapters.standardise import Standardise
from mmrec_jax.adapters.towers import TowerSpec
from mmrec_jax.fusion import FusionConfig, fuse_modalities
from mmrec_jax.systems.registry import CatalogueShape, System
from mmrec_jax.types import HiddenStates, ItemVectors

if TYPE_CHECKING:
    from mmrec_jax.config import RunConfig


@dataclass(frozen=True)
class XsmoeConfig:
    """Sizes and switches of the item encoder.

    Attributes:
        ladders: the ladders.
        fusion: how the modality vectors become one; `add` is the paper's.
        width: of the item vector (128 in the paper).
        standardise: bring the hidden states of all layers to one scale first.
    """

    ladders: LadderConfig
    fusion: FusionConfig
    width: int = 128
    standardise: bool = False


class Xsmoe(nn.Module):
    """The item encoder: hidden states of any number of modalities to one vector an item (papers.md 4, items 1 to 5).

    The paper's items have all modalities; here (PROPOSAL) an absent one has no part in the fused vector.
    """

    config: XsmoeConfig

    @nn.compact
    def __call__(self, hidden: HiddenStates) -> ItemVectors:
        """Ladders, ``W_c`` split by modality, fusion: with `add`, the linear map ``W_c [x^1; ..; x^n] + b``."""
        config = self.config
        if config.standardise:
            hidden = Standardise(name="standardise")(hidden)
        specs = config.ladders.modalities
        # Drawn as one map of the concatenated states is.
        init = nn.initializers.variance_scaling(1.0 / len(specs), "fan_in", "truncated_normal", in_axis=-1, out_axis=-2)
        heads = {spec.name: self.param(f"project_{spec.name}", init, (config.width, spec.width)) for spec in specs}
        vectors = Ladders(config.ladders, name="ladders")(hidden, heads)
        present = jnp.stack([hidden.present[name] for name in vectors], axis=-1)
        return fuse_modalities(config.fusion, name="fusion")(vectors, present, hidden.complete)


def ladders_of(config: RunConfig, catalogue: CatalogueShape) -> LadderConfig:
    """The ladders that a config asks for."""
    model, bottlenecks = config.model, dict(config.model.bottlenecks)
    specs = tuple(
        TowerSpec(name, shape.width, shape.layers, bottlenecks.get(name, model.bottleneck))
        for name, shape in catalogue.states.items()
    )
    return LadderConfig(specs, model.experts, model.capacity)


def check(config: RunConfig) -> None:
    """Refuses what no states could make possible."""
    ladders_of(config, CatalogueShape.of_layers(config))


def build(config: RunConfig, catalogue: CatalogueShape) -> Xsmoe:
    """The item encoder of a config."""
    model = config.model
    return Xsmoe(XsmoeConfig(ladders_of(config, catalogue), config.fusion, model.width, model.standardise))


SYSTEM = System(
    build,
    check=check,
    fusion="add",
    switches=("bottleneck", "bottlenecks", "experts", "capacity", "standardise"),
)
