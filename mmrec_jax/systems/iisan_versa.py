"""IISAN-Versa (arXiv 2411.02992): IISAN for two backbones of any widths and depths, with narrower heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmrec_jax.systems.iisan import SWITCHES, Iisan, check, iisan, parts
from mmrec_jax.systems.registry import CatalogueShape, System

if TYPE_CHECKING:
    from mmrec_jax.config import RunConfig


def build(config: RunConfig, catalogue: CatalogueShape) -> Iisan:
    """The item encoder of a config (papers.md 1.0b).

    The inter-modal tower has the narrower width, reads states of the wider modality through a linear map a block, and
    is as long as the shorter list of layers: of the longer one it reads the last. `backbones.config.evenly_spaced`
    makes lists of one length for encoders of any depth.
    """
    return iisan(config, catalogue, narrow_heads=True)


SYSTEM = System(build, switches=SWITCHES, parts=parts, check=check, fusion="concat")
