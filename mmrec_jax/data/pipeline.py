"""From a source to prepared data: read, check, filter, split, write."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmrec_jax.data import fingerprint, splits
from mmrec_jax.data.config import DataConfig
from mmrec_jax.data.layouts import Source, locate
from mmrec_jax.data.log import core
from mmrec_jax.data.prepared import CATALOGUE, MANIFEST, USERS, PreparedData, open_prepared
from mmrec_jax.data.ragged import Ragged
from mmrec_jax.data.readers import ReadSource, read_source
from mmrec_jax.errors import DataError

_UNFINISHED = "unfinished-"


def prepare(config: DataConfig, directory: Path | str) -> PreparedData:
    """Prepares a source below `directory`, or opens what an earlier call prepared.

    Each combination of config and source files has a subdirectory of its own, named by the fingerprint, which
    appears only when it is complete; what a killed call left is removed. Calls that run at the same time wait
    for each other.

    Args:
        config: what to read, and how.
        directory: where prepared data is kept; made if absent.

    Raises:
        DataError: the source cannot be used as it is, or nothing of it is left after the filters.
        ConfigError: the config does not fit the source.
    """
    source = locate(config)
    made_from = fingerprint.contents(config, source.files)
    digest = fingerprint.digest(made_from)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    finished = directory / digest[:16]
    with _alone(directory):
        if not finished.exists():
            for leftover in directory.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(leftover)
            unfinished = directory / f"{_UNFINISHED}{digest[:16]}"
            manifest = {"fingerprint": digest, "made_from": made_from, **_make(config, source, unfinished)}
            (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            unfinished.rename(finished)
    return open_prepared(finished)


def _make(config: DataConfig, source: Source, directory: Path) -> dict[str, Any]:
    """Makes all of a prepared directory but its manifest, and returns what the manifest says about it."""
    from mmrec_jax.data.builder import write_histories  # tfds and grain take most of a second to import

    read = read_source(source, config)
    steps = list(read.steps)
    split = _filter_and_split(config, read, steps)
    splits.verify(split)
    log, catalogue = split.log, read.catalogue
    candidates = np.arange(len(catalogue)) if config.candidates == "catalogue" else np.unique(log.items)
    users, number = np.unique(log.users, return_inverse=True)
    rows = np.zeros(len(catalogue), np.int32)
    rows[candidates] = np.arange(1, len(candidates) + 1)
    parts = {
        name: Ragged.of_lengths(
            rows[log.items[split.part == part]], np.bincount(number[split.part == part], minlength=len(users))
        )
        for part, name in enumerate(splits.PARTS)
    }
    directory.mkdir()
    catalogue[candidates].write_parquet(directory / CATALOGUE)
    pl.DataFrame({"user": log.user_ids.gather(users)}).write_parquet(directory / USERS)
    write_histories(directory, parts)
    return {
        "events": {name: len(part.values) for name, part in parts.items()},
        "report": {
            "layout": source.layout,
            "steps": steps,
            "skipped": read.skipped,
            "split": split.report | _shares(parts),
            "candidates": f"{config.candidates}: {len(candidates)} of {len(catalogue)} catalogue items",
        },
    }


def _filter_and_split(config: DataConfig, read: ReadSource, steps: list[dict[str, Any]]) -> splits.Split:
    log = read.log
    if config.user_core > 1 or config.item_core > 1:
        kept, rounds = core(log, config.user_core, config.item_core)
        log = log.take(kept)
        name = f"core of {config.user_core} events a user, {config.item_core} an item ({rounds} rounds)"
        steps.append({"step": name, **log.counts()})
    if not len(log):
        counts = "; ".join(f"{step['step']}: {step['interactions']} interactions" for step in steps)
        raise DataError(
            f"nothing is left of {config.source} ({counts}): lower data.min_rating, data.user_core or data.item_core."
        )
    if config.split == "leave_one_out":
        split = splits.leave_one_out(log, config.max_length)
    else:
        split = splits.temporal(log, config.valid_fraction, config.test_fraction, config.max_length)
    if config.max_length:
        steps.append({"step": f"last {config.max_length} of each user", **split.log.counts()})
    return split


def _shares(parts: dict[str, Ragged]) -> dict[str, Any]:
    total = sum(len(part.values) for part in parts.values())
    return {
        f"{name} events (users)": f"{len(part.values)} = {len(part.values) / total:.1%}"
        f" ({np.count_nonzero(part.lengths)})"
        for name, part in parts.items()
    }


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Waits until no other process prepares below this directory."""
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
