"""CROSSAN (arXiv 2504.10307): side towers with cross-modal exchange, and mixture of modality expert fusion."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from mmrec_jax.adapters import CrossModalTowers, TowerConfig, TowerSpec
from mmrec_jax.adapters.standardise import Standardise
from mmrec_jax.adapters.towers import Head
from mmrec_jax.fusion import FusionConfig, fuse_modalities
from mmrec_jax.types import HiddenStates, ItemVectors


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
