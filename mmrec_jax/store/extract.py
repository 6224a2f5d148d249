"""A catalogue of raw media into a hidden-state store; stopped at any moment, it goes on where it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import jax
import polars as pl
from rich.console import Console

from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig
from mmrec_jax.errors import ConfigError, StoreError
from mmrec_jax.store.arrays import key_value_store
from mmrec_jax.store.lock import EXTRACTION, alone
from mmrec_jax.store.processes import Processes
from mmrec_jax.store.report import REPORT, ModalityReport
from mmrec_jax.store.store import HiddenStateStore
from mmrec_jax.store.work import GroupExtraction


def extract(
    modalities: Mapping[str, ModalityConfig],
    catalogue: pl.DataFrame,
    media_root: str | Path,
    store: str | Path,
    config: ExtractionConfig | None = None,
    mirrors: Mapping[str, str] | None = None,
    devices: Sequence[jax.Device] = (),
) -> dict[str, ModalityReport]:
    """Makes a store hold the hidden states of every item of a catalogue.

    Finished items are left alone; those that are made of something else than before, such as another text or file, are
    encoded again, and those whose media failed are tried again. Where another extraction is writing to a
    local store, this one waits until it has ended.

    Modalities that differ only in pooling and layers are read and encoded once. Items that have no readable
    medium are marked as not present and listed, with the reason, in the report and in
    `extraction_report.json` in the store. Under `jax.distributed` each process calls this with the same arguments
    and goes through a share of the catalogue.

    Args:
        modalities: name -> what it is made of.
        catalogue: one row an item; the column "item" holds its id as text.
        media_root: folder that media paths are relative to.
        store: local path or gs:// URL; made where it does not exist, appended to where items are new.
        config: sizes of batches, type of the store, bounds.
        mirrors: backbone as named in a modality -> where its files are on this machine.
        devices: of this process that share the rows of a batch; none for the first one.

    Returns:
        A report for each modality.

    Raises:
        ConfigError: a column is missing.
        BackboneError: a backbone cannot be loaded or is of another kind than its modality.
        StoreMismatchError: the store has a modality of that name made in another way.
        StoreError: more media than `max_failure_share` are broken, no item has the modality, states are not
            finite, or another process failed or is not heard of.
    """
    config = config or ExtractionConfig()
    if "item" not in catalogue.columns:
        raise ConfigError("the catalogue needs the column 'item' with the items' ids")
    catalogue = catalogue.with_columns(pl.col("item").cast(pl.String))
    processes = Processes(key_value_store(store), config.process_timeout)

    def waits() -> None:
        _say(config, f"Another extraction is writing to the store {store}: waiting until it has ended.")

    with alone(store, EXTRACTION, waits) if processes.first else nullcontext():
        return _extract(modalities, catalogue, Path(media_root), store, config, dict(mirrors or {}), processes, devices)


def encoded_together(modalities: Mapping[str, ModalityConfig]) -> list[dict[str, ModalityConfig]]:
    """Modalities with the same inputs and backbone together."""
    groups: dict[tuple, dict[str, ModalityConfig]] = {}
    for name, config in modalities.items():
        groups.setdefault(config.inputs, {})[name] = config
    return list(groups.values())


def _extract(
    modalities: Mapping[str, ModalityConfig],
    catalogue: pl.DataFrame,
    media_root: Path,
    store: str | Path,
    config: ExtractionConfig,
    mirrors: dict[str, str],
    processes: Processes,
    devices: Sequence[jax.Device],
) -> dict[str, ModalityReport]:
    target = _open(store, catalogue["item"].to_list(), processes)
    reports: dict[str, ModalityReport] = {}
    written: dict[str, str] = {}
    for group in encoded_together(modalities):
        work = GroupExtraction(group, catalogue, media_root, target, config, mirrors, processes, devices)
        reports |= work.run(written)
        if processes.first:
            for name in group:
                _say(config, reports[name].summary(name))
        for name in group:
            _refuse_gaps(name, reports[name], config.max_failure_share)
    return reports


def _open(store: str | Path, items: list[str], processes: Processes) -> HiddenStateStore:
    """The store, which one process makes or appends to and the others find."""
    target = HiddenStateStore.create(store, items) if processes.first else None
    processes.meet(f"process 0 has made the store {store} for {len(items)} items")
    return target or HiddenStateStore.open(store)


def _say(config: ExtractionConfig, line: str) -> None:
    if config.progress:
        Console(markup=False, highlight=False).print(line)


def _refuse_gaps(name: str, report: ModalityReport, share: float) -> None:
    if report.failed > share * report.items:
        examples = "; ".join(f"{item}: {reason}" for item, reason in list(report.reasons.items())[:3])
        raise StoreError(
            f"modality {name}: the media of {report.failed} of {report.items} items are broken or missing, "
            f"more than the allowed share of {share:g} ({examples}). See {REPORT} in the store; mend the "
            "media and run again, or raise max_failure_share"
        )
    if report.items and not report.present and share < 1:
        raise StoreError(f"modality {name}: not one of {report.items} items has it: check its template or column")
