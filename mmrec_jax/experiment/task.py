"""What a run trains, and what the training reads and never changes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mmrec_jax.config import RunConfig

if TYPE_CHECKING:
    from mmrec_jax.data.prepared import PreparedData
    from mmrec_jax.live import LiveBackbones
    from mmrec_jax.live.catalogue import LiveFrozen
    from mmrec_jax.sequence import GruConfig, SasRecConfig
    from mmrec_jax.shards import Shards
    from mmrec_jax.store.table import StateTable
    from mmrec_jax.training.items import SequentialFrozen
    from mmrec_jax.training.sequential import SequentialRecommendation


def build_task(
    config: RunConfig,
    table: StateTable | None,
    rows: int,
    live: LiveBackbones | None = None,
    shards: Shards | None = None,
) -> SequentialRecommendation:
    """The task of a config.

    Args:
        config: of the run.
        table: hidden states; None for systems by id.
        rows: catalogue rows, padding included.
        live: backbones that are run in the step.
        shards: of a step over several devices.
    """
    from mmrec_jax.systems import CatalogueShape, StateShape, build, reads, system
    from mmrec_jax.training.items import CatalogueItems
    from mmrec_jax.training.sequential import SequentialRecommendation

    found = {} if table is None else {n: (layers[0].shape[-1], len(layers)) for n, layers in table.values.items()}
    found |= {name: part.shape for name, part in live.backbones.items()} if live else {}
    shapes = {name: StateShape(*found[name]) for name in config.modalities}
    return SequentialRecommendation(
        CatalogueItems(build(config, CatalogueShape(rows, shapes)), reads(config)),
        _user(config),
        config.objective,
        config.scoring,
        system(config.model.system).parts(config),
        compute_dtype(config),
        live,
        shards,
    )


def _user(config: RunConfig) -> SasRecConfig | GruConfig:
    from mmrec_jax.sequence import GruConfig, SasRecConfig

    model, user = config.model, config.user
    if user.kind == "gru":
        return GruConfig(model.width, model.length, user.blocks, user.dropout)
    return SasRecConfig(model.width, model.length, user.blocks, user.heads, user.dropout)


def compute_dtype(config: RunConfig) -> str:
    """Type of the item encoder's products: `auto` is bfloat16 on accelerators and float32 on CPU, faster there."""
    import jax

    if config.training.compute_dtype != "auto":
        return config.training.compute_dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def frozen_inputs(table: StateTable | None, prepared: PreparedData, live: LiveFrozen | None = None) -> SequentialFrozen:
    """What the task reads and never trains."""
    import jax.numpy as jnp

    from mmrec_jax.objectives import log_popularity
    from mmrec_jax.training.items import SequentialFrozen

    return SequentialFrozen(table, log_popularity(jnp.asarray(prepared.popularity)), live)


def id_baseline(config: RunConfig) -> RunConfig:
    """The same run with a table of ids in place of the content encoder: the ID-only SASRec to compare with."""
    return replace(
        config,
        name=f"{config.name}_sasrec",
        modalities={},
        methods={},
        model=config.model.without_switches("sasrec"),
        user=replace(config.user, kind="sasrec"),
        training=replace(config.training, groups=()),
        baselines=(),
        warm_start="",
        store="",
    )
