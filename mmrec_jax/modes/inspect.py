"""Says what a place holds: raw data, prepared data, a hidden-state store, checkpoints or a whole workdir."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from mmrec_jax.config import RunConfig, resolve
from mmrec_jax.errors import CheckpointError, ConfigError, DataError
from mmrec_jax.modes.run import terminal
from mmrec_jax.modes.workdir import CONFIG_FILE, is_trained, read_config

if TYPE_CHECKING:
    from mmrec_jax.data.readers import ReadSource
    from mmrec_jax.store.store import HiddenStateStore


def inspect(path: str | None, config: ConfigDict | None = None, console: Console | None = None) -> None:
    """Prints what is found at `path`.

    Args:
        path: a data directory, prepared data, a store (also a URL), a folder of checkpoints or a workdir; None is the
            config's data.
        config: says how raw data is laid out, and what its columns are called.
        console: where to write.

    Raises:
        ConfigError: no path is given.
        DataError: nothing that this library knows lies there, or raw data that cannot be read at all.
    """
    console = console or terminal()
    settings = None if config is None else resolve(config)
    if path is None and settings is not None:
        path = settings.data.source
    if not path:
        raise ConfigError("inspect needs --path: a data directory, prepared data, a store, checkpoints or a workdir.")
    if "://" in path or (Path(path) / "store.json").exists():
        from mmrec_jax.store import HiddenStateStore

        console.print(describe_store(HiddenStateStore.open(path)))
        return
    if path.startswith("sample:"):
        _raw(path, settings, console)
        return
    directory = Path(path)
    if not directory.is_dir():
        raise DataError(f"{path}: there is no such directory.")
    workdir, prepared, checkpoints = (show(directory, console) for show in (_workdir, _prepared, _checkpoints))
    if not (workdir or prepared or checkpoints):
        _raw(path, settings, console)


def describe_store(store: HiddenStateStore) -> Table:
    """A table of a store's modalities."""
    from mmrec_jax.store.store import ABSENT, FAILED, PENDING, PRESENT

    grid = Table(title=f"Hidden-state store {store.location}: {len(store.item_ids):,} items")
    grid.add_column("")
    rows: dict[str, list[str]] = {}
    for name, info in store.modalities.items():
        grid.add_column(name, overflow="fold")
        counts = np.bincount(store.status(name), minlength=4)
        made = info.fingerprint
        cells = {
            "kind": str(made.get("kind")),
            "backbone": str(made.get("backbone")),
            "weights (sha256)": str(made.get("weights_sha256"))[:12],
            "made from": str(made.get("template")),
            "layers": ", ".join(map(str, info.layers)),
            "width": str(info.width),
            "pooling": info.pooling,
            "type": info.dtype,
            "present": f"{counts[PRESENT]:,}",
            "no medium": f"{counts[ABSENT]:,}",
            "broken medium": f"{counts[FAILED]:,}",
            "to be extracted": f"{counts[PENDING]:,}",
        }
        for key, cell in cells.items():
            rows.setdefault(key, []).append(cell)
    for key, cells_of in rows.items():
        grid.add_row(key, *cells_of)
    return grid


def _workdir(directory: Path, console: Console) -> bool:
    from mmrec_jax import experiment

    config = read_config(directory)
    if config is None:
        return False
    console.print(f"Workdir {directory}: run {config.name}, system {config.model.system}")
    console.print(f"data: {config.data.source}")
    console.print(f"config: {directory / CONFIG_FILE}")
    if config.prepared:
        console.print(f"prepared data: {config.prepared}")
    for name, method in config.methods.items():
        console.print(f"live: {name}, {method.kind} inside {config.modalities[name].backbone}")
    if config.cached:
        source_is_here = bool(config.store) or experiment.has_source(config)
        location = experiment.store_location(config, directory) if source_is_here else str(directory / "store")
        store = experiment.open_store(location)
        console.print(f"store: {location}: nothing was extracted yet" if store is None else describe_store(store))
    for name in ("results", "evaluation"):
        if (directory / f"{name}.json").exists():
            _results(json.loads((directory / f"{name}.json").read_text(encoding="utf-8")), name, console)
    return True


def _results(content: Mapping[str, Any], name: str, console: Console) -> None:
    models = content["models"]
    grid = Table(title=f"{name}.json, test split, percent")
    grid.add_column("metric")
    for model in models:
        grid.add_column(model, justify="right")
    for metric in next(iter(models.values()))["test"]["metrics"]:
        if metric.split("@")[0] in ("HR", "NDCG", "MRR"):
            grid.add_row(metric, *(f"{100 * part['test']['metrics'][metric]:.2f}" for part in models.values()))
    console.print(grid)


def _prepared(directory: Path, console: Console) -> bool:
    """Every prepared data set in the directory or in its `data/`."""
    from mmrec_jax.data import open_prepared
    from mmrec_jax.data.prepared import MANIFEST

    found = sorted(
        path.parent for pattern in (MANIFEST, f"*/{MANIFEST}", f"data/*/{MANIFEST}") for path in directory.glob(pattern)
    )
    for place in found:
        console.print(f"\nPrepared data {place}")
        try:
            prepared = open_prepared(place)
        except DataError as error:
            console.print(str(error))
            continue
        console.print(prepared.describe())
        lengths = prepared.train.lengths
        console.print(
            f"training events a user: {lengths.min()} to {lengths.max()}, median {np.median(lengths):g}; "
            f"catalogue columns: {', '.join(prepared.catalogue.columns)}"
        )
    return bool(found)


def _checkpoints(directory: Path, console: Console) -> bool:
    """Every checkpoint of the directory, and what the newest sound one holds."""
    from mmrec_jax.training.checkpoints import Checkpoints, checkpoint_directory

    place = checkpoint_directory(directory)
    if not is_trained(place):
        return False
    console.print(f"\nCheckpoints {place}")
    sound = None
    with Checkpoints(place, read_only=True) as checkpoints:
        for step in checkpoints.steps():
            size = sum(file.stat().st_size for file in (place / f"step_{step}").rglob("*") if file.is_file())
            try:
                checkpoint = checkpoints.read(step, state=False)
            except CheckpointError as error:
                console.print(f"step {step}: {error}")
                continue
            console.print(f"step {step}: sound, {size / 2**20:.2f} MiB")
            sound = sound or checkpoint
    if sound is not None:
        _progress(sound.manifest, console)
        console.print(_parameters(sound.evaluated, sound.manifest["run"].get("system")))
    return True


def _progress(manifest: Mapping[str, Any], console: Console) -> None:
    progress, run = manifest["progress"], manifest["run"]
    monitor = run.get("info", {}).get("training", {}).get("monitor", "monitored metric")
    done = f"{progress['step']:,} steps, {len(progress['history'])} epochs of {progress['batches_per_epoch']:,} steps"
    console.print(f"newest: {done}; seed {progress['seed']}")
    if progress["best_step"] is not None:
        console.print(f"best: step {progress['best_step']:,}, {monitor} {progress['best_value']:.4f} (validation)")
    for name, part in run.get("modalities", {}).items():
        layers = ", ".join(map(str, part["layers"])) or "every second"
        console.print(f"modality {name}: width {part['width']}, layers {layers}, pooling {part['pooling']}")
    console.print("made with: " + ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()))


def _parameters(params: Mapping[str, Any], system: str | None) -> Table:
    from mmrec_jax.training.trees import named_leaves

    sizes: dict[str, list[int]] = {}
    for name, leaf in named_leaves(params).items():
        sizes.setdefault("/".join(name.split("/")[:2]), []).append(leaf.size)
    grid = Table(title=f"Parameters of system {system}")
    grid.add_column("part", overflow="fold")
    for heading in ("arrays", "numbers"):
        grid.add_column(heading, justify="right")
    for name, parts in sizes.items():
        grid.add_row(name, str(len(parts)), f"{sum(parts):,}")
    grid.add_section()
    every = [size for parts in sizes.values() for size in parts]
    grid.add_row("all", str(len(every)), f"{sum(every):,}")
    return grid


def _raw(path: str, settings: RunConfig | None, console: Console) -> None:
    from mmrec_jax.data.config import DataConfig
    from mmrec_jax.data.layouts import locate
    from mmrec_jax.data.readers import read_source

    config = replace(settings.data if settings else DataConfig(), source=path, on_bad_row="skip")
    try:
        source = locate(config)
    except ConfigError as error:
        raise DataError(
            f"{path} holds neither prepared data, a store, checkpoints nor a workdir, and no raw data either: {error}"
        ) from error
    read = read_source(source, config)
    items = source.items.name if source.items else "no items file"
    console.print(f"Raw data {source.directory}, layout {source.layout}: {source.interactions.name}, {items}")
    for step in read.steps:
        counts = ", ".join(f"{count:,} {what}" for what, count in step.items() if what != "step")
        console.print(f"{step['step']}: {counts}")
    for kind, count in read.skipped.items():
        console.print(f"bad rows: {count:,} x {kind}")
    if not read.skipped:
        console.print("bad rows: none")
    else:
        console.print("Training stops at bad rows and names them, unless data.on_bad_row='skip'.")
    _log(read, console)
    console.print(_columns(read.catalogue))


def _log(read: ReadSource, console: Console) -> None:
    log = read.log
    if not len(log):
        return
    for what, counts in (("a user", np.bincount(log.users)), ("an item", np.bincount(log.items))):
        some = counts[counts > 0]
        console.print(f"events of {what}: {some.min():,} to {some.max():,}, median {np.median(some):g}")
    unseen = len(read.catalogue) - np.count_nonzero(np.bincount(log.items))
    console.print(f"items without any event: {unseen:,} of {len(read.catalogue):,}")
    if log.times is None:
        console.print("times: none, the order of the file counts")
    else:
        console.print(f"times: {log.times.min()} to {log.times.max()}, {len(np.unique(log.times)):,} different ones")


def _columns(catalogue: pl.DataFrame) -> Table:
    """Each column of the catalogue: its type, how much of it is filled, and an example."""
    grid = Table(title=f"Catalogue: {len(catalogue):,} items")
    grid.add_column("column", overflow="fold")
    grid.add_column("type")
    grid.add_column("filled", justify="right")
    grid.add_column("example", no_wrap=True, overflow="ellipsis", max_width=40)
    for name in catalogue.columns:
        filled = catalogue[name].drop_nulls()
        if filled.dtype == pl.String:
            filled = filled.filter(filled.str.strip_chars() != "")
        example = str(filled[0]) if len(filled) else ""
        grid.add_row(name, str(catalogue[name].dtype), f"{len(filled):,}", example)
    return grid
