"""Hidden states of a run: its store, what is missing in it, and the table that training reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from mmrec_jax.config import RunConfig
from mmrec_jax.errors import MissingModalityError
from mmrec_jax.experiment.sources import has_source, source_directory

if TYPE_CHECKING:
    import polars as pl

    from mmrec_jax.data.prepared import PreparedData
    from mmrec_jax.live import LiveCatalogue
    from mmrec_jax.shards import Shards
    from mmrec_jax.store.store import HiddenStateStore
    from mmrec_jax.store.table import StateTable


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
    return config.store or _store_of_sample(config) or str(workdir / "store")


def _store_of_sample(config: RunConfig) -> str:
    """Where a sample's own store lies, if it serves the config; else ""."""
    if config.store or not config.data.source.startswith("sample:"):
        return ""
    own = str(source_directory(config) / "store")
    store = open_store(own)
    return own if store is not None and set(config.cached) <= set(store.modalities) else ""


def check_store(config: RunConfig, store: HiddenStateStore, trained: bool = False) -> None:
    """Makes sure that those of a config's modalities that a store has are made as the config says.

    A sample's own states, and those that a run was trained on, are taken whatever their type is.

    Raises:
        StoreMismatchError: they are made in another way; every difference is listed.
    """
    dtype = "" if trained or _store_of_sample(config) else config.extraction.dtype
    store.check({name: part for name, part in config.cached.items() if name in store.modalities}, dtype)


def ensure_states(
    config: RunConfig, catalogue: pl.DataFrame, workdir: Path, shards: Shards | None = None, trained: bool = False
) -> HiddenStateStore:
    """A store that holds every item's states of the modalities that are not live; extracts what it lacks, over the
    devices of this process that are in the run's mesh.

    Args:
        config: of the run.
        catalogue: one row an item.
        workdir: of the run.
        shards: of the run's mesh.
        trained: whether the run is one that was trained on these states already, which are then taken as they are.

    Raises:
        StoreMismatchError: the store was made with other settings.
        ConfigError: a modality names a column that the catalogue lacks.
    """
    import polars as pl

    from mmrec_jax.backbones.text import fill_template
    from mmrec_jax.store import HiddenStateStore, extract

    location = store_location(config, workdir)
    store = open_store(location)
    if store is not None:
        check_store(config, store, trained)
        lacking = any(store.missing(config.cached, catalogue["item"].cast(pl.String).to_list()).values())
        if not lacking and (trained or not _changed(config, catalogue, store)):
            return store
    for part in config.cached.values():
        fill_template(part.source, catalogue.head(0))  # a missing column is found before the store is made
    devices = shards.own_devices if shards else ()
    extract(config.cached, catalogue, source_directory(config), location, config.extraction, devices=devices)
    return HiddenStateStore.open(location)


def _changed(config: RunConfig, catalogue: pl.DataFrame, store: HiddenStateStore) -> bool:
    """Whether states were made of something else than what the items have now, as the first process sees it."""
    from mmrec_jax.store.content import changed_items
    from mmrec_jax.training.processes import as_first_says, writes

    found = {}
    if writes() and has_source(config):
        found = changed_items(store, config.cached, catalogue, source_directory(config))
    return bool(as_first_says([any(items.any() for items in found.values())])[0])


def load_table(
    config: RunConfig,
    prepared: PreparedData,
    store: HiddenStateStore | None,
    catalogue: LiveCatalogue | None = None,
    shards: Shards | None = None,
) -> StateTable:
    """States of the catalogue in memory, over a mesh each row on its device; those of live modalities are computed as
    they are needed.

    Raises:
        MissingModalityError: items that have none of the modalities.
    """
    from mmrec_jax.store.table import StateTable

    wanted = {name: part.layers for name, part in config.cached.items()}
    none = ~np.any(list(present_rows(config, prepared, store, catalogue).values()), axis=0)
    none[0] = False
    if none.any():
        items = ", ".join(str(item) for item in prepared.item_ids[none][:10])
        raise MissingModalityError(
            f"{int(none.sum())} items have none of the modalities {', '.join(config.modalities)}: {items}"
            f"{', ...' if none.sum() > 10 else ''}. Give them a medium, add a modality that they have, or take them "
            "out of the catalogue."
        )
    if store is None:
        return StateTable({}, {}, {}, complete=True, shards=shards)
    return store.table(wanted, _item_names(prepared), shards)


def present_rows(
    config: RunConfig, prepared: PreparedData, store: HiddenStateStore | None, catalogue: LiveCatalogue | None
) -> dict[str, Bool[np.ndarray, " row"]]:
    """Modality -> catalogue rows that have it."""
    found = store.present(config.cached, _item_names(prepared)) if store is not None else {}
    found |= catalogue.present if catalogue else {}
    return {name: found[name] for name in config.modalities}


def _item_names(prepared: PreparedData) -> list[str]:
    return [str(item) for item in prepared.item_ids[1:]]
