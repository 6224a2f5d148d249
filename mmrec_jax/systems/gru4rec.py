"""GRU4Rec (arXiv 1511.06939) on ids: item vectors from a trained table, users by a gated recurrent unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmrec_jax.errors import ConfigError
from mmrec_jax.systems.registry import IDS, System
from mmrec_jax.systems.sasrec import build

if TYPE_CHECKING:
    from mmrec_jax.config import RunConfig


def check(config: RunConfig) -> None:
    """The user encoder is what this system is named after."""
    if config.user.kind != "gru":
        raise ConfigError(f"model.system='gru4rec' needs user.kind='gru', and it is {config.user.kind!r}.")


SYSTEM = System(build, reads=(IDS,), check=check)
