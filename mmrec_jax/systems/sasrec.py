"""SASRec (arXiv 1808.09781) on ids: item vectors from a trained table, users by self-attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmrec_jax.errors import ConfigError
from mmrec_jax.systems.id_table import IdTable
from mmrec_jax.systems.registry import IDS, CatalogueShape, System

if TYPE_CHECKING:
    from mmrec_jax.config import RunConfig


def build(config: RunConfig, catalogue: CatalogueShape) -> IdTable:
    """The table."""
    return IdTable(catalogue.rows, config.model.width)


def check(config: RunConfig) -> None:
    """The user encoder is what this system is named after."""
    if config.user.kind != "sasrec":
        raise ConfigError(
            f"model.system='sasrec' needs user.kind='sasrec', and it is {config.user.kind!r}: take "
            "model.system='gru4rec' for a recurrent unit over ids."
        )


SYSTEM = System(build, reads=(IDS,), check=check)
