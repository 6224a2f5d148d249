"""Says what a directory holds: raw data, prepared data, a hidden-state store, checkpoints or a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from mmrec_jax.errors import ConfigError, DataError
from mmrec_jax.modes.run import CONFIG_FILE


def inspect(path: str | None, console: Console | None = None) -> None:
    """Prints what is found at `path`.

    Raises:
        ConfigError: no path is given.
        DataError: nothing that this library knows lies there.
    """
    from mmrec_jax.store import HiddenStateStore
    from mmrec_jax.store.arrays import key_value_store, read_json

    console = console or Console()
    if not path:
        raise ConfigError(
            "inspect needs --path: a data directory, prepared data, a store, checkpoints or a workdir."
        )
    if "://" in path or (Path(path) / "store.json").exists():
        if read_json(key_value_store(path), "store.json") is None:
            raise DataError(f"{path}: no hidden-state store lies there.")
        console.print(describe_store(HiddenStateStore.open(path)))
        return
    directory = Path(path)
    if not directory.is_dir():
        raise DataError(f"{path}: no such directory.")
    found = False
    if (directory / CONFIG_FILE).exists():
        console.print(f"Run {json.loads((directory / CONFIG_FILE).read_text())['name']} in {directory}")
        found = True
    for describe in (_prepared, _store_inside, _checkpoints, _raw):
        found = describe(directory, console) or found
    if not found:
        raise DataError(
            f"{path}: neither raw data, prepared data, a store, checkpoints nor a workdir. Raw data needs an "
            "interactions file and an items file; see docs/data.md."
        )


def describe_store(store) -> Table:
    """A table of a store's modalities."""
    from mmrec_jax.store.store import PENDING, PRESENT

    grid = Table(title=f"Hidden-state store {store.location}: {len(store.item_ids)} items")
    for heading in (
        "modality",
        "backbone",
        "layers",
        "width",
        "pooling",
        "type",
        "present",
        "absent",
        "pending",
    ):
        grid.add_column(heading)
    for name, info in store.modalities.items():
        status = store.status(name)
        present, pending = int(np.sum(status == PRESENT)), int(np.sum(status == PENDING))
        grid.add_row(
            name,
            str(info.fingerprint.get("backbone")),
            ",".join(map(str, info.layers)),
            str(info.width),
            info.pooling,
            info.dtype,
            str(present),
            str(len(status) - present - pending),
            str(pending),
        )
    return grid


def _prepared(directory: Path, console: Console) -> bool:
    from mmrec_jax.data import open_prepared

    inside = directory / "data" if (directory / "data").is_dir() else directory
    try:
        console.print(open_prepared(inside).describe())
    except DataError:
        return False
    return True


def _store_inside(directory: Path, console: Console) -> bool:
    from mmrec_jax.store import HiddenStateStore

    if not (directory / "store" / "store.json").exists():
        return False
    console.print(describe_store(HiddenStateStore.open(directory / "store")))
    return True


def _checkpoints(directory: Path, console: Console) -> bool:
    from mmrec_jax.errors import CheckpointError
    from mmrec_jax.training import load_params

    if not (directory / "checkpoints").is_dir() and directory.name != "checkpoints":
        return False
    try:
        params, manifest = load_params(directory)
    except CheckpointError as error:
        console.print(str(error))
        return True
    grid = Table(title=f"Best checkpoint in {directory}, system {manifest['run'].get('system')}")
    for heading in ("parameters", "shapes", "numbers"):
        grid.add_column(heading)
    total = 0
    for group, tree in _groups(params).items():
        size = sum(leaf.size for leaf in tree)
        total += size
        grid.add_row(group, f"{len(tree)} arrays", f"{size:,}")
    grid.add_row("all", "", f"{total:,}")
    console.print(grid)
    console.print(f"progress: {json.dumps(manifest['progress'], default=str)[:400]}")
    console.print(f"modalities: {json.dumps(manifest['run'].get('modalities'))}")
    return True


def _groups(params: dict) -> dict[str, list]:
    import jax

    groups: dict[str, list] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        groups.setdefault("/".join(str(key.key) for key in path[:2]), []).append(leaf)
    return groups


def _raw(directory: Path, console: Console) -> bool:
    from mmrec_jax.data.config import DataConfig
    from mmrec_jax.data.layouts import locate
    from mmrec_jax.data.readers import read_source

    config = DataConfig(source=str(directory), on_bad_row="skip")
    try:
        source = locate(config)
    except (DataError, ConfigError):
        return False
    read = read_source(source, config)
    console.print(
        f"Raw data, layout {source.layout}: {source.interactions.name}, {source.items and source.items.name}"
    )
    console.print(read)
    return True
