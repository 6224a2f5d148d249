"""From a config to the parts of a run: prepared data, state table, task, training stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmrec_jax.config import RunConfig, to_json
from mmrec_jax.errors import MissingModalityError, UserError

if TYPE_CHECKING:
    from mmrec_jax.data.batches import TrainingStream
    from mmrec_jax.data.prepared import PreparedData
    from mmrec_jax.store.store import HiddenStateStore
    from mmrec_jax.store.table import StateTable
    from mmrec_jax.training.sequential import SequentialFrozen, SequentialRecommendation


def source_directory(config: RunConfig) -> Path:
    """Where the raw data lies; samples come with the package."""
    from mmrec_jax.data.layouts import locate

    return locate(config.data).interactions.parent


def has_source(config: RunConfig) -> bool:
    """Whether the raw data is there."""
    from mmrec_jax.data.layouts import locate

    try:
        locate(config.data)
    except UserError:
        return False
    return True


def prepared_directory(config: RunConfig, workdir: Path) -> Path:
    """Where prepared data is kept, in a folder for each fingerprint: as configured, else in the workdir."""
    return Path(config.prepared) if config.prepared else workdir / "data"


def prepare_data(config: RunConfig, workdir: Path) -> PreparedData:
    """The checked, filtered and split data, made on the first call and opened later."""
    from mmrec_jax.data import prepare

    return prepare(config.data, prepared_directory(config, workdir))


def open_store(location: str) -> HiddenStateStore | None:
    """The store at a location, or None where there is none."""
    from mmrec_jax.store import HiddenStateStore
    from mmrec_jax.store.arrays import key_value_store, read_json

    if read_json(key_value_store(location), "store.json") is None:
        return None
    return HiddenStateStore.open(location)


def store_location(config: RunConfig, workdir: Path) -> str:
    """Where the hidden states are kept: as configured, else in the workdir.

    A sample's own store serves configs whose modalities it all has; nothing is ever written to it.
    """
    if config.store:
        return config.store
    if config.data.source.startswith("sample:"):
        own = str(source_directory(config) / "store")
        store = open_store(own)
        if store is not None and set(config.modalities) <= set(store.modalities):
            return own
    return str(workdir / "store")


def ensure_states(config: RunConfig, prepared: PreparedData, workdir: Path) -> HiddenStateStore:
    """A store that holds every item's states as the config asks for them; extracts what it lacks.

    Raises:
        StoreMismatchError: the store was made with other settings.
        ConfigError: a modality names a column that the catalogue lacks.
    """
    from mmrec_jax.backbones.text import fill_template
    from mmrec_jax.store import HiddenStateStore, extract

    location = store_location(config, workdir)
    store = open_store(location)
    if store is not None:
        store.check({name: part for name, part in config.modalities.items() if name in store.modalities})
        if not any(store.missing(config.modalities, [str(item) for item in prepared.item_ids[1:]]).values()):
            return store
    for part in config.modalities.values():
        fill_template(part.source, prepared.catalogue.head(0))  # a missing column is found before the store is made
    extract(config.modalities, prepared.catalogue, source_directory(config), location, config.extraction)
    return HiddenStateStore.open(location)


def load_table(config: RunConfig, prepared: PreparedData, store: HiddenStateStore) -> StateTable:
    """States of the whole catalogue in memory.

    Raises:
        MissingModalityError: items that have none of the modalities.
    """
    wanted = {name: part.layers for name, part in config.modalities.items()}
    table = store.table(wanted, [str(item) for item in prepared.item_ids[1:]])
    none = ~np.any([np.asarray(mask) for mask in table.present.values()], axis=0)
    none[0] = False
    if none.any():
        items = ", ".join(str(item) for item in prepared.item_ids[none][:10])
        raise MissingModalityError(
            f"{int(none.sum())} items have none of the modalities {', '.join(wanted)}: {items}"
            f"{', ...' if none.sum() > 10 else ''}. Give them a medium, add a modality that they have, or take them "
            "out of the catalogue."
        )
    return table


def build_task(config: RunConfig, table: StateTable | None, rows: int) -> SequentialRecommendation:
    """The task of a config.

    Args:
        config: of the run.
        table: hidden states; None for systems by id.
        rows: catalogue rows, padding included.
    """
    from mmrec_jax.sequence import SasRecConfig
    from mmrec_jax.systems import CatalogueShape, StateShape, system
    from mmrec_jax.training.sequential import CatalogueItems, SequentialRecommendation

    user = SasRecConfig(
        width=config.model.width,
        length=config.model.length,
        blocks=config.user.blocks,
        heads=config.user.heads,
        dropout=config.user.dropout,
    )
    chosen = system(config.model.system)
    states = {} if table is None else {name: table.values[name] for name in config.modalities}
    shapes = {name: StateShape(layers[0].shape[-1], len(layers)) for name, layers in states.items()}
    items = CatalogueItems(chosen.build(config, CatalogueShape(rows, shapes)), chosen.reads)
    return SequentialRecommendation(
        items, user, config.objective, config.scoring, chosen.parts(config), compute_dtype(config)
    )


def compute_dtype(config: RunConfig) -> str:
    """Type of the item encoder's products: `auto` is bfloat16 on accelerators and float32 on CPU, faster there."""
    import jax

    if config.training.compute_dtype != "auto":
        return config.training.compute_dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def frozen_inputs(table: StateTable | None, prepared: PreparedData) -> SequentialFrozen:
    """What the task reads and never trains."""
    import jax.numpy as jnp

    from mmrec_jax.objectives import log_popularity
    from mmrec_jax.training.sequential import SequentialFrozen

    return SequentialFrozen(table, log_popularity(jnp.asarray(prepared.popularity)))


def training_stream(config: RunConfig, prepared: PreparedData) -> TrainingStream:
    """Batches of this process."""
    from mmrec_jax.data import training_batches

    return training_batches(
        prepared,
        batch_size=config.training.batch_size,
        length=config.model.length,
        window=config.model.window,
        seed=config.training.seed,
        epochs=config.training.epochs,
    )


def description(config: RunConfig, prepared: PreparedData, store: HiddenStateStore | None) -> dict[str, Any]:
    """What a checkpoint is of, kept in its manifest; all but `info` must agree when it is used again."""
    modalities = {}
    if store is not None:
        for name, part in config.modalities.items():
            info = store.modalities[name]
            modalities[name] = {
                "width": info.width,
                "layers": list(part.layers),
                "pooling": info.pooling,
                "weights_sha256": info.fingerprint.get("weights_sha256", ""),
            }
    as_json = to_json(config)
    parts = ("model", "fusion", "user", "scoring", "objective")
    return {
        "system": config.model.system,
        "modalities": modalities,
        "data": prepared.fingerprint,
        **{part: as_json[part] for part in parts},
        "info": {"config": as_json},
    }


def id_baseline(config: RunConfig) -> RunConfig:
    """The same run with a table of ids in place of the content encoder: the ID-only SASRec to compare with."""
    return replace(
        config,
        name=f"{config.name}_sasrec",
        modalities={},
        model=config.model.without_switches("sasrec"),
        training=replace(config.training, groups=()),
        baselines=(),
        warm_start="",
        store="",
    )
