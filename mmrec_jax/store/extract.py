"""A catalogue of raw media into a hidden-state store; stopped at any moment, it goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from mmrec_jax.backbones.backbone import Backbone, load
from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig, resolve_layers
from mmrec_jax.backbones.encode import Head, PooledEncoder
from mmrec_jax.backbones.media import ABSENCE, Missing, Reader, image_inputs, text_inputs
from mmrec_jax.backbones.text import TextPreprocessor
from mmrec_jax.errors import BackboneError, ConfigError, StoreError, StoreMismatchError
from mmrec_jax.store.arrays import write_json
from mmrec_jax.store.fingerprint import differences, make_fingerprint
from mmrec_jax.store.progress import ProgressLine
from mmrec_jax.store.store import ABSENT, FAILED, PENDING, PRESENT, HiddenStateStore, ModalityInfo

REPORT = "extraction_report.json"


@dataclass(frozen=True)
class ModalityReport:
    """What a catalogue's extraction came to for one modality.

    Attributes:
        items: of the catalogue.
        present: items with states.
        absent: items for which the catalogue has no medium (empty text, no path).
        failed: items whose medium is broken or was not found.
        reasons: item -> why it is absent or failed.
        computed: items gone through in this run; the others were finished before.
        seconds: this run's time for the modality and those encoded with it, loading and compilation included.
    """

    items: int
    present: int
    absent: int
    failed: int
    reasons: dict[str, str]
    computed: int
    seconds: float


def extract(
    modalities: Mapping[str, ModalityConfig],
    catalogue: pl.DataFrame,
    media_root: str | Path,
    store: str | Path,
    config: ExtractionConfig | None = None,
    mirrors: Mapping[str, str] | None = None,
) -> dict[str, ModalityReport]:
    """Makes a store hold the hidden states of every item of a catalogue.

    Finished items are left alone; those whose media failed are tried again.

    Modalities that differ only in pooling and layers are read and encoded once. Items that have no readable
    medium are marked as not present and listed, with the reason, in the report and in
    `extraction_report.json` in the store.

    Args:
        modalities: name -> what it is made of.
        catalogue: one row an item; the column "item" holds its id as text.
        media_root: folder that media paths are relative to.
        store: local path or gs:// URL; made where it does not exist, appended to where items are new.
        config: sizes of batches, type of the store, bounds.
        mirrors: backbone as named in a modality -> where its files are on this machine.

    Returns:
        A report for each modality.

    Raises:
        ConfigError: a column is missing.
        BackboneError: a backbone cannot be loaded or is of another kind than its modality.
        StoreMismatchError: the store has a modality of that name made in another way.
        StoreError: more media than `max_failure_share` are broken, no item has the modality, or states are
            not finite.
    """
    config = config or ExtractionConfig()
    if "item" not in catalogue.columns:
        raise ConfigError("the catalogue needs the column 'item' with the items' ids")
    catalogue = catalogue.with_columns(pl.col("item").cast(pl.String))
    target = HiddenStateStore.create(store, catalogue["item"].to_list())
    reports: dict[str, ModalityReport] = {}
    for group in _groups(modalities):
        reports |= _Extraction(group, catalogue, Path(media_root), target, config, dict(mirrors or {})).run()
        write_json(target.files, REPORT, {name: asdict(report) for name, report in reports.items()})
        for name in group:
            _refuse_gaps(name, reports[name], config.max_failure_share)
    return reports


def _groups(modalities: Mapping[str, ModalityConfig]) -> list[dict[str, ModalityConfig]]:
    """Modalities with the same inputs and backbone together."""
    groups: dict[tuple, dict[str, ModalityConfig]] = {}
    for name, config in modalities.items():
        key = (config.kind, config.backbone, config.revision, config.source, config.max_tokens)
        groups.setdefault(key, {})[name] = config
    return list(groups.values())


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


class _Extraction:
    """The work for modalities that share their inputs and their backbone."""

    def __init__(
        self,
        group: dict[str, ModalityConfig],
        catalogue: pl.DataFrame,
        media_root: Path,
        store: HiddenStateStore,
        config: ExtractionConfig,
        mirrors: dict[str, str],
    ):
        self.group, self.catalogue, self.media_root = group, catalogue, media_root
        self.store, self.config, self.mirrors = store, config, mirrors
        self.any = next(iter(group.values()))
        self.rows = store.rows(catalogue["item"].to_list())
        self.failures: dict[str, str] = {}
        self.batch = config.text_batch if self.any.kind == "text" else config.image_batch

    def run(self) -> dict[str, ModalityReport]:
        started = time.perf_counter()
        known = {name: name in self.store.modalities for name in self.group}
        pending = {
            name: self._unfinished(name) if known[name] else np.ones(len(self.rows), bool) for name in self.group
        }
        waiting = np.any(list(pending.values()), axis=0)
        if waiting.any() or not all(known.values()):
            self._encode(pending, waiting)
        else:
            self._check_known()
        seconds = time.perf_counter() - started
        return {name: self._report(name, int(waiting.sum()), seconds) for name in self.group}

    def _unfinished(self, name: str) -> np.ndarray:
        """Items to go through; failed ones too, since their media may have been mended."""
        return np.isin(self.store.status(name)[self.rows], (PENDING, FAILED))

    def _encode(self, pending: dict[str, np.ndarray], waiting: np.ndarray) -> None:
        backbone = self._load()
        for name, modality in self.group.items():
            self._open_modality(name, modality, backbone)
        heads = [Head(self.store.modalities[name].layers, m.pooling) for name, m in self.group.items()]
        encoder = PooledEncoder(backbone, heads, self.batch)
        line = ProgressLine(", ".join(self.group), len(waiting), int((~waiting).sum()), self.config.progress)
        with ThreadPoolExecutor(self.config.decode_threads) as threads, ThreadPoolExecutor(1) as ahead, line:
            reader = self._reader(backbone, threads)
            for places, inputs in self._blocks(waiting, reader, ahead):
                self._commit(places, inputs, encoder, pending)
                if len(self.failures) > self.config.max_failure_share * len(waiting):
                    return  # the report names them, and the caller raises
                line.advance(len(places))

    def _load(self) -> Backbone:
        named = self.any.backbone
        backbone = load(self.mirrors.get(named, named), revision=self.any.revision, max_tokens=self.any.max_tokens)
        if backbone.family.kind != self.any.kind:
            raise BackboneError(
                f"{', '.join(self.group)}: {named} encodes {backbone.family.kind}, but the modality's kind "
                f"is {self.any.kind}"
            )
        return backbone

    def _open_modality(self, name: str, modality: ModalityConfig, backbone: Backbone) -> None:
        """Makes the modality's arrays, or makes sure that those in the store are of the same making."""
        fingerprint = make_fingerprint(modality, backbone)
        layers = resolve_layers(modality.layers, backbone.sizes.depth, f"modality {name}")
        wanted = ModalityInfo(backbone.sizes.width, layers, modality.pooling, self.config.dtype, fingerprint)
        if name not in self.store.modalities:
            self.store.add_modality(name, wanted)
            return
        stored = self.store.modalities[name]
        have, want = {"dtype": stored.dtype, **stored.fingerprint}, {"dtype": wanted.dtype, **fingerprint}
        # A backbone may be named in another way, as long as its weights are the same.
        unequal = [key for key in want if have.get(key) != want[key] and key not in ("backbone", "revision")]
        found = [f"{key} is {have.get(key)!r} in the store and would be {want[key]!r}" for key in unequal]
        # The store's own layers are written whatever the config asks for, so fewer of them will do.
        if lacking := sorted(set(layers) - set(stored.layers)):
            found.append(f"layers {lacking} are not among the stored layers {list(stored.layers)}")
        self._refuse(name, found)

    def _check_known(self) -> None:
        for name, modality in self.group.items():
            info = self.store.modalities[name]
            self._refuse(name, differences(modality, info.fingerprint, info.layers))

    def _refuse(self, name: str, found: list[str]) -> None:
        if found:
            raise StoreMismatchError(
                f"store {self.store.location} has modality {name} made in another way: {'; '.join(found)}. "
                "Extract into another store, or delete this one"
            )

    def _reader(self, backbone: Backbone, threads: ThreadPoolExecutor) -> Reader:
        preprocess = backbone.preprocess
        if isinstance(preprocess, TextPreprocessor):
            return partial(text_inputs, self.any, preprocess)
        return partial(
            image_inputs,
            self.any,
            preprocess,
            media_root=self.media_root,
            max_pixels=self.config.max_pixels,
            threads=threads,
        )

    def _blocks(
        self, waiting: np.ndarray, reader: Reader, ahead: ThreadPoolExecutor
    ) -> Iterator[tuple[np.ndarray, list[np.ndarray | Missing]]]:
        """Catalogue places with their inputs, one block read while the one before is encoded.

        Blocks lie at fixed places of the catalogue, so that a resumed run makes the same batches.
        """
        size = self.batch * self.config.commit_batches
        starts = [s for s in range(0, len(waiting), size) if waiting[s : s + size].any()]
        places = [s + np.flatnonzero(waiting[s : s + size]) for s in starts]
        following = None
        for number, here in enumerate(places):
            now = following or ahead.submit(reader, self.catalogue[here])
            following = ahead.submit(reader, self.catalogue[places[number + 1]]) if number + 1 < len(places) else None
            yield here, now.result()

    def _commit(
        self,
        places: np.ndarray,
        inputs: list[np.ndarray | Missing],
        encoder: PooledEncoder,
        pending: dict[str, np.ndarray],
    ) -> None:
        reasons = {place: i for place, i in zip(places, inputs, strict=True) if isinstance(i, Missing)}
        self.failures |= {self.catalogue["item"][int(p)]: r.reason for p, r in reasons.items() if r.failed}
        readable = np.asarray([not isinstance(i, Missing) for i in inputs])
        states = encoder([i for i in inputs if not isinstance(i, Missing)])
        status = np.full(len(places), PRESENT, np.uint8)
        status[~readable] = [FAILED if r.failed else ABSENT for r in reasons.values()]
        for name, found in zip(self.group, states, strict=True):
            # A modality that is finished here stays as it is when it is encoded along with a later one.
            new = pending[name][places]
            if not new.any():
                continue
            full = np.zeros((len(places), *found.shape[1:]), np.float32)
            full[readable] = found
            self.store.write(name, self.rows[places[new]], full[new], status[new])

    def _report(self, name: str, computed: int, seconds: float) -> ModalityReport:
        status = self.store.status(name)[self.rows]
        # Failed items are tried anew in each run (until there are too many), absent ones have one reason.
        reasons = dict.fromkeys(self.catalogue["item"].filter(pl.Series(status == ABSENT)), ABSENCE[self.any.kind])
        failed = self.catalogue["item"].filter(pl.Series(status == FAILED))
        return ModalityReport(
            items=len(status),
            present=int((status == PRESENT).sum()),
            absent=int((status == ABSENT).sum()),
            failed=int((status == FAILED).sum()),
            reasons=reasons | {item: self.failures.get(item, "failed in an earlier run") for item in failed},
            computed=computed,
            seconds=round(seconds, 3),
        )
