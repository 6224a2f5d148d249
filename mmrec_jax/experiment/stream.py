"""Batches of a run's steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mmrec_jax.config import RunConfig
from mmrec_jax.errors import ConfigError

if TYPE_CHECKING:
    from mmrec_jax.data.batches import TrainingStream
    from mmrec_jax.data.prepared import PreparedData
    from mmrec_jax.live import LiveBackbones, LiveCatalogue, LiveStream
    from mmrec_jax.shards import Shards


def training_stream(
    config: RunConfig,
    prepared: PreparedData,
    live: LiveBackbones | None = None,
    catalogue: LiveCatalogue | None = None,
    shards: Shards | None = None,
) -> TrainingStream | LiveStream:
    """Batches of a step, with the raw inputs of their items where a backbone is run in the step.

    A process among several makes the rows of a step that its devices take, of the same step on any number of processes.

    Raises:
        ConfigError: a batch cannot be split over the devices.
    """
    from mmrec_jax.data import training_batches

    groups = shards.batch_parts if shards else 1
    if config.training.batch_size % groups:
        raise ConfigError(
            f"training.batch_size={config.training.batch_size} cannot be split over {groups} devices: choose a "
            f"multiple of {groups}, or give parallel.data a size that divides it."
        )
    own = shards.own_groups if shards else None
    stream = training_batches(
        prepared,
        batch_size=config.training.batch_size,
        length=config.model.length,
        window=config.model.window,
        seed=config.training.seed,
        epochs=config.training.epochs,
        size_multiple=math.lcm(16, groups),
        groups=groups,
        owners=shards.owners if shards else 1,
        owner_rows=_rows_of_owner(config, prepared, shards),
        own_groups=own,
    )
    if live is None or catalogue is None:
        return stream
    from mmrec_jax.live import LiveStream
    from mmrec_jax.share import Share

    return LiveStream(stream, live, catalogue, Share(groups, own))


def _rows_of_owner(config: RunConfig, prepared: PreparedData, shards: Shards | None) -> int:
    """Catalogue rows of each owner; 0 where a batch's items need not be with those who have them."""
    if shards is None or shards.encode != "own" or config.objective.candidates != "batch":
        return 0
    return shards.rows_of_owner(prepared.num_items + 1)
