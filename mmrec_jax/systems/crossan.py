"""CROSSAN (arXiv 2504.10307): side towers with cross-modal exchange, and mixture of modality expert fusion."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from mmrec_jax.adapters import CrossModalTowers, TowerConfig
from mmrec_jax.fusion import FusionConfig, fuse_modalities
from mmrec_jax.types import HiddenStates, ItemVectors


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
        states = CrossModalTowers(config.tower, name="adapters")(hidden)
        vectors = {
            name: nn.Dense(config.width, name=f"project_{name}")(state) for name, state in states.items()
        }
        present = None if hidden.complete else jnp.stack([hidden.present[name] for name in states], axis=-1)
        return fuse_modalities(config.fusion, name="fusion")(vectors, present)
