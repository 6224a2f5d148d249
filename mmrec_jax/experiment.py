"""From a config to the parts of a run: prepared data, state table, task, training stream."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool

from mmrec_jax.config import SECTIONS, RunConfig, to_json
from mmrec_jax.errors import ConfigError, MissingModalityError, UserError

if TYPE_CHECKING:
    import polars as pl

    from mmrec_jax.data.batches import TrainingStream
    from mmrec_jax.data.prepared import PreparedData
    from mmrec_jax.live import LiveBackbones, LiveCatalogue, LiveStream
    from mmrec_jax.live.catalogue import LiveFrozen
    from mmrec_jax.sequence import GruConfig, SasRecConfig
    from mmrec_jax.shards import Shards
    from mmrec_jax.store.store import HiddenStateStore
    from mmrec_jax.store.table import StateTable
    from mmrec_jax.training.items import SequentialFrozen
    from mmrec_jax.training.sequential import SequentialRecommendation


def source_directory(config: RunConfig) -> Path:
    """Where the raw data lies; samples come with the package."""
    from mmrec_jax.data.layouts import locate

    return locate(config.data).directory


def has_source(config: RunConfig) -> bool:
    """Whether the raw data is there."""
    from mmrec_jax.data.layouts import locate

    try:
        locate(config.data)
    except UserError:
        return False
    return True


def source_fingerprint(config: RunConfig) -> str | None:
    """Fingerprint of the data that the source gives as it is now; None where the raw data is not there."""
    from mmrec_jax.data import fingerprint
    from mmrec_jax.data.layouts import locate

    try:
        files = locate(config.data).files
    except UserError:
        return None
    return fingerprint.digest(fingerprint.contents(config.data, files))


def prepared_directory(config: RunConfig, workdir: Path) -> Path:
    """Where prepared data is kept, in a folder for each fingerprint: as configured, else in the workdir."""
    return Path(config.prepared) if config.prepared else workdir / "data"


def prepare_data(config: RunConfig, workdir: Path) -> PreparedData:
    """The checked, filtered and split data, made on the first call and opened later."""
    from mmrec_jax.data import open_prepared, prepare
    from mmrec_jax.data.layouts import STREAMED

    if config.data.source == STREAMED:
        return open_prepared(prepared_directory(config, workdir).resolve())  # a link that is moved now and then
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


def load_live(config: RunConfig) -> LiveBackbones | None:
    """The backbones that are run in the step; None where there are none.

    Raises:
        BackboneError: one cannot be loaded.
        ConfigError: a method, layers or pooling do not fit it.
    """
    if not config.methods:
        return None
    from mmrec_jax.live import LiveBackbones, live_backbone

    return LiveBackbones(
        {
            name: live_backbone(name, config.modalities[name], method, config.extraction)
            for name, method in config.methods.items()
        }
    )


def live_catalogue(
    config: RunConfig, live: LiveBackbones, items: pl.DataFrame, media_root: Path, directory: Path, made_of: str
) -> LiveCatalogue:
    """Raw inputs of items, made on the first call and opened later.

    Args:
        config: of the run.
        live: its live backbones.
        items: one row an item.
        media_root: folder that media paths are relative to.
        directory: takes a folder for each modality, its preprocessing and `made_of`.
        made_of: tells these items from others.
    """
    from mmrec_jax.live import LiveCatalogue, prepare_inputs

    found = {}
    for name, part in live.backbones.items():
        modality, preprocess = config.modalities[name], part.backbone.preprocess
        limits = config.extraction.max_pixels, config.extraction.max_video_seconds
        about = json.dumps([modality.inputs[4:], preprocess.fingerprint, limits, made_of], sort_keys=True)
        folder = directory / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"
        found[name] = prepare_inputs(modality, preprocess, items, media_root, config.extraction, folder, name)
    return LiveCatalogue(found)


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


def description(
    config: RunConfig, data: str, store: HiddenStateStore | None, live: LiveBackbones | None = None
) -> dict[str, Any]:
    """What a checkpoint is of, kept in its manifest; all but `info` must agree when it is used again.

    Args:
        config: of the run.
        data: fingerprint of what it is trained on.
        store: of the hidden states.
        live: backbones that are run in the step.
    """
    from mmrec_jax.adapters.config import HARMLESS

    modalities: dict[str, Any] = {}
    for name, embedded in live.backbones.items() if live else ():
        modalities[name] = {
            "width": embedded.shape[0],
            "layers": list(embedded.head.layers),
            "pooling": embedded.head.pooling,
            "weights_sha256": embedded.backbone.weights_sha256,
            "method": {key: value for key, value in asdict(embedded.method).items() if key not in HARMLESS},
        }
    if store is not None:
        for name, part in config.cached.items():
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
        "data": data,
        **{part: as_json[part] for part in parts},
        "info": {"config": as_json, "defaults": {part: asdict(SECTIONS[part]()) for part in parts}},
    }


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
