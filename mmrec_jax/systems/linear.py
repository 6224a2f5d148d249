"""A linear head on hidden states of each modality: what side adapters, and methods inside a backbone, start from.

With cached states it is the baseline of frozen features; with live backbones the head of full fine-tuning, LoRA and
bottleneck adapters in IISAN's comparison (arXiv 2404.02059, table 2; papers.md 1.0).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

from mmrec_jax.adapters.standardise import Standardise
from mmrec_jax.fusion import FusionConfig, fuse_modalities
from mmrec_jax.systems.registry import CatalogueShape, System
from mmrec_jax.types import HiddenStates, ItemVectors

if TYPE_CHECKING:
    from mmrec_jax.config import RunConfig


class Linear(nn.Module):
    """``e^x = A_x h^x``, fused.

    Attributes:
        modalities: in the order of the fusion weights.
        fusion: how the modality vectors become one.
        width: of the item vector.
        states: what is read of each modality: the `last` of its selected layers, or all of them `concatenated`.
        standardise: bring the hidden states of all layers to one scale first.
    """

    modalities: tuple[str, ...]
    fusion: FusionConfig
    width: int = 64
    states: str = "last"
    standardise: bool = False

    @nn.compact
    def __call__(self, hidden: HiddenStates) -> ItemVectors:
        """A linear map a modality, fusion."""
        vectors = {}
        if self.standardise:
            hidden = Standardise(name="standardise")(hidden)
        for name in self.modalities:
            read = hidden.values[name][-1:] if self.states == "last" else hidden.values[name]
            vectors[name] = nn.Dense(self.width, name=f"project_{name}")(jnp.concatenate(read, axis=-1))
        present = jnp.stack([hidden.present[name] for name in self.modalities], axis=-1)
        return fuse_modalities(self.fusion, name="fusion")(vectors, present, hidden.complete)


def build(config: RunConfig, catalogue: CatalogueShape) -> Linear:
    """The item encoder of a config."""
    model = config.model
    return Linear(tuple(catalogue.states), config.fusion, model.width, model.states, model.standardise)


SYSTEM = System(build, switches=("states", "standardise"))
