"""IISAN (arXiv 2404.02059): intra-modal and inter-modal side towers on the cached states of two backbones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

from mmrec_jax.adapters.blocks import Head, chained, linear
from mmrec_jax.adapters.intra_inter import INTER, IntraInterConfig, IntraInterTowers
from mmrec_jax.adapters.standardise import Standardise
from mmrec_jax.adapters.towers import TowerSpec
from mmrec_jax.errors import ConfigError
from mmrec_jax.fusion import FusionConfig, fuse_modalities
from mmrec_jax.systems.registry import CatalogueShape, System
from mmrec_jax.types import HiddenStates, ItemVectors

if TYPE_CHECKING:
    from mmrec_jax.config import RunConfig


@dataclass(frozen=True)
class IisanConfig:
    """Sizes and switches of the item encoder.

    Attributes:
        towers: the side towers.
        fusion: how the vectors of the towers become one; `concat` is the paper's.
        width: of the item vector (64 in the paper).
        remove_first: leave out the first selected state of each modality.
        narrow_heads: heads of intra-modal towers go to `width` at once, as IISAN-Versa's do; IISAN's, like those of the
            inter-modal tower, pass through a square matrix first.
        standardise: bring the hidden states of all layers to one scale first.
    """

    towers: IntraInterConfig
    fusion: FusionConfig
    width: int = 64
    remove_first: bool = False
    narrow_heads: bool = False
    standardise: bool = False


class Iisan(nn.Module):
    """The item encoder: hidden states to one vector an item (papers.md 1.0, items 2 to 7, and 1.0b).

    The paper's items have all modalities. Here (PROPOSAL) an absent one has no part in the fused vector, and leaves the
    inter-modal tower to the other.
    """

    config: IisanConfig

    @nn.compact
    def __call__(self, hidden: HiddenStates) -> ItemVectors:
        """Towers, two linear maps of each tower's last state, fusion."""
        config = self.config
        if config.standardise:
            hidden = Standardise(name="standardise")(hidden)
        if config.remove_first:
            hidden = replace(hidden, values={name: states[1:] for name, states in hidden.values.items()})
        heads = {name: self._head(name, width) for name, width in config.towers.widths.items()}
        vectors = IntraInterTowers(config.towers, name="adapters")(hidden, heads)
        some = jnp.any(jnp.stack(list(hidden.present.values())), axis=0)
        present = jnp.stack([hidden.present.get(name, some) for name in vectors], axis=-1)
        return fuse_modalities(config.fusion, name="fusion")(vectors, present, hidden.complete)

    def _head(self, tower: str, width: int) -> Head:
        """``A F`` of a tower's last state, as one matrix."""
        between = self.config.width if self.config.narrow_heads and tower != INTER else width
        first = linear(self, f"square_{tower}" if between == width else f"narrow_{tower}", width, between)
        return chained(first, linear(self, f"project_{tower}", between, self.config.width))


SWITCHES = (
    "towers",
    "gate",
    "remove_first",
    "bottleneck",
    "bottlenecks",
    "gate_temperature",
    "activation",
    "standardise",
)


def towers_of(config: RunConfig, catalogue: CatalogueShape) -> IntraInterConfig:
    """The towers that a config asks for."""
    model, bottlenecks = config.model, dict(config.model.bottlenecks)
    if model.gate == "sigmoid":
        raise ConfigError("model.gate='sigmoid': IISAN's two weights sum to one (`softmax`), or are one each (`add`).")
    specs = tuple(
        TowerSpec(name, shape.width, shape.layers - model.remove_first, bottlenecks.get(name, model.bottleneck))
        for name, shape in catalogue.states.items()
    )
    gated = model.gate != "add"
    return IntraInterConfig(specs, model.towers, gated, model.gate_temperature, model.activation, model.bottleneck)


def parts(config: RunConfig) -> tuple[str, ...]:
    """Towers, in the order of the fusion weights."""
    intra = tuple(config.modalities) if config.model.towers != "inter" else ()
    return (*intra, INTER) if config.model.towers != "intra" else intra


def check(config: RunConfig) -> None:
    """Refuses what no states could make possible."""
    towers_of(config, CatalogueShape.of_layers(config))


def build(config: RunConfig, catalogue: CatalogueShape) -> Iisan:
    """The item encoder of a config.

    Raises:
        ConfigError: the backbones' states differ in width or number.
    """
    shapes = {(shape.width, shape.layers) for shape in catalogue.states.values()}
    if len(shapes) > 1 and config.model.towers != "intra":
        told = ", ".join(f"{name} {shape.layers} x {shape.width}" for name, shape in catalogue.states.items())
        raise ConfigError(
            f"model.system='iisan' mixes states of equal width and number, and these are {told} (layers x width). "
            "Choose as many `layers` of each and backbones of one width, or model.system='iisan_versa'."
        )
    return iisan(config, catalogue, narrow_heads=False)


def iisan(config: RunConfig, catalogue: CatalogueShape, narrow_heads: bool) -> Iisan:
    """The module for a config whose combination is possible."""
    model, towers = config.model, towers_of(config, catalogue)
    return Iisan(IisanConfig(towers, config.fusion, model.width, model.remove_first, narrow_heads, model.standardise))


SYSTEM = System(build, switches=SWITCHES, parts=parts, check=check, fusion="concat")
