"""The extraction of modalities that share their inputs and their backbone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import polars as pl
from jaxtyping import Int, UInt8, UInt64
from rich.console import Console

from mmrec_jax.backbones.backbone import Backbone, load
from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig, resolve_layers
from mmrec_jax.backbones.encode import Head, PooledEncoder, check_head
from mmrec_jax.backbones.media import MediaInputs, Missing, TextInputs, absence
from mmrec_jax.backbones.text import TextPreprocessor
from mmrec_jax.errors import StoreMismatchError
from mmrec_jax.store.arrays import chunk_rows, open_array
from mmrec_jax.store.blocks import blocks_of, share_of
from mmrec_jax.store.content import RULE, HashedMedia, HashedTexts, Made, changed_items
from mmrec_jax.store.fingerprint import differences, dtype_difference, make_fingerprint
from mmrec_jax.store.processes import Processes
from mmrec_jax.store.progress import ProgressLine
from mmrec_jax.store.reading import read_ahead
from mmrec_jax.store.report import (
    EXAMPLES,
    ModalityReport,
    as_json,
    note_failures,
    noted_failures,
    reasons_of,
    write_report,
)
from mmrec_jax.store.store import ABSENT, FAILED, PENDING, PRESENT, HiddenStateStore, ModalityInfo


@dataclass(frozen=True)
class Block:
    """Items that are written together.

    Attributes:
        places: of the items in the catalogue.
        states: of each modality, [item, layer, width]; zeros where there are none.
        status: PRESENT, ABSENT or FAILED.
        content: hash and stamp of what each item was made of.
        failures: item -> reason.
    """

    places: Int[np.ndarray, " item"]
    states: list[np.ndarray]
    status: UInt8[np.ndarray, " item"]
    content: UInt64[np.ndarray, "item 2"]
    failures: dict[str, str]


class GroupExtraction:
    """One pass over a catalogue, or over a process's share of it, for modalities that are encoded together."""

    def __init__(
        self,
        group: dict[str, ModalityConfig],
        catalogue: pl.DataFrame,
        media_root: Path,
        store: HiddenStateStore,
        config: ExtractionConfig,
        mirrors: dict[str, str],
        processes: Processes,
        devices: Sequence[jax.Device] = (),
    ):
        self.devices = devices
        self.group, self.catalogue, self.media_root = group, catalogue, media_root
        self.store, self.config, self.mirrors, self.processes = store, config, mirrors, processes
        self.title, self.name, self.any = ", ".join(group), next(iter(group)), next(iter(group.values()))
        self.rows = store.rows(catalogue["item"].to_list())
        backend = jax.default_backend()
        self.batch, self.block = config.batch(self.any.kind, backend), config.block(self.any.kind, backend)
        self.failed, self.waited = 0, 0.0

    def run(self, written: dict[str, str]) -> dict[str, ModalityReport]:
        """Extracts what is not finished.

        Args:
            written: modality -> its part of the report on disk; this group's parts are added.
        """
        started = time.perf_counter()
        known = {name: name in self.store.modalities for name in self.group}
        self.changed = changed_items(self.store, self.group, self.catalogue, self.media_root)
        pending = {
            name: self._unfinished(name) | self.changed[name] if known[name] else np.ones(len(self.rows), bool)
            for name in self.group
        }
        waiting = np.any(list(pending.values()), axis=0)
        if waiting.any() or not all(known.values()):
            backbone = self._open(all(known.values()))
            if self.processes.first:
                self._forget_changed()
            self.processes.meet(f"all have seen what is to be done for {self.title}")
            self._encode(backbone, pending, waiting)
            self.processes.wait_for_all(self.title)
        else:
            self._check_known()
        reports = {
            name: self._report(name, int(waiting.sum()), time.perf_counter() - started, written) for name in self.group
        }
        if self.processes.first:
            write_report(self.store.files, written)
        self.processes.meet(f"the report of {self.title} is made")
        if self.processes.first:
            self.processes.clear()
        return reports

    def _unfinished(self, name: str) -> np.ndarray:
        """Items to go through; failed ones too, since their media may have been mended."""
        return np.isin(self.store.status(name)[self.rows], (PENDING, FAILED))

    def _forget_changed(self) -> None:
        """Says that changed items are encoded again; a kill leaves them among those that are to be extracted."""
        for name, changed in self.changed.items():
            if changed.any():
                self.store.forget(name, self.rows[changed])
                if self.config.progress:
                    Console(markup=False, highlight=False).print(
                        f"{name}: {int(changed.sum()):,} of {len(changed):,} items are made of something else than "
                        "before, and are encoded again."
                    )

    def _check_known(self) -> None:
        for name, modality in self.group.items():
            info = self.store.modalities[name]
            unlike = differences(modality, info.fingerprint, info.layers)
            self._refuse(name, unlike + dtype_difference(self.config.dtype, info.dtype))

    def _open(self, known: bool) -> Backbone:
        """The backbone, and the modalities' arrays: made by the first process, and of the same making for all."""
        named = self.any.backbone
        backbone = load(
            self.mirrors.get(named, named),
            kind=self.any.kind,
            revision=self.any.revision,
            max_tokens=self.any.max_tokens,
            max_seconds=self.any.max_seconds,
            frames=self.any.frames,
            dtype=self.any.compute_dtype,
        )
        wanted = {name: self._info(name, modality, backbone) for name, modality in self.group.items()}
        if self.processes.first:
            for name, info in wanted.items():
                self.store.add_modality(name, info)
        if not known:
            self.processes.meet(f"process 0 has made the arrays of {self.title}")
            self.store.refresh()
        for name, info in wanted.items():
            self._check_made(name, info)
        return backbone

    def _info(self, name: str, modality: ModalityConfig, backbone: Backbone) -> ModalityInfo:
        layers = resolve_layers(modality.layers, backbone.sizes.depth, f"modality {name}")
        check_head(backbone, Head(layers, modality.pooling, modality.frame_pooling))
        fingerprint = make_fingerprint(modality, backbone)
        return ModalityInfo(backbone.sizes.width, layers, modality.pooling, self.config.dtype, fingerprint, RULE)

    def _check_made(self, name: str, wanted: ModalityInfo) -> None:
        """Makes sure that the modality's arrays in the store are of the same making."""
        stored = self.store.modalities[name]
        have, want = stored.fingerprint, wanted.fingerprint
        # A backbone may be named in another way, as long as its weights are the same.
        unequal = [key for key in want if have.get(key) != want[key] and key not in ("backbone", "revision")]
        found = [f"{key} is {have.get(key)!r} in the store and would be {want[key]!r}" for key in unequal]
        found += dtype_difference(wanted.dtype, stored.dtype)
        # The store's own layers are written whatever the config asks for, so fewer of them will do.
        if lacking := sorted(set(wanted.layers) - set(stored.layers)):
            found.append(f"layers {lacking} are not among the stored layers {list(stored.layers)}")
        self._refuse(name, found)

    def _refuse(self, name: str, found: list[str]) -> None:
        if found:
            raise StoreMismatchError(
                f"store {self.store.location} has modality {name} made in another way: {'; '.join(found)}. "
                "Extract into another store, or delete this one"
            )

    def _encode(self, backbone: Backbone, pending: dict[str, np.ndarray], waiting: np.ndarray) -> None:
        heads = [Head(self.store.modalities[name].layers, m.pooling, m.frame_pooling) for name, m in self.group.items()]
        encoder = PooledEncoder(backbone, heads, self.batch, devices=self.devices)
        chunk = min(chunk_rows(open_array(self.store.files, f"{name}/status")) for name in self.group)
        blocks = blocks_of(self.rows, waiting, self.block, chunk)
        shared = share_of(blocks, self.processes.index, self.processes.count)
        if self.processes.count == 1:
            line = ProgressLine(self.title, len(waiting), int((~waiting).sum()), self.config.progress)
        else:
            share = f"{self.title} (share {self.processes.index + 1} of {self.processes.count})"
            line = ProgressLine(share, sum(map(len, shared)), 0, self.config.progress and self.processes.first)
        self.processes.tell(0)
        try:
            # A block is written while the next is encoded.
            with line, ThreadPoolExecutor(1) as writer, closing(self._inputs(backbone, shared)) as inputs:
                writing: Future[int] | None = None
                for places in shared:
                    block = self._through(places, inputs, encoder)
                    if writing:
                        line.advance(writing.result())
                        self.processes.tell(line.done)
                    writing = writer.submit(self._write, block, pending)
                    if self.failed > self.config.max_failure_share * len(waiting):
                        break  # the report names them, and the caller raises
                if writing:
                    line.advance(writing.result())
        except BaseException as error:
            self.processes.tell(line.done, error=f"{type(error).__name__}: {error}")
            raise
        self.waited = encoder.waited
        self.processes.tell(line.done, finished=True)

    def _inputs(self, backbone: Backbone, blocks: list[np.ndarray]) -> Generator[Made]:
        """The items of all blocks, one after another, read and decoded ahead of the encoder."""
        config, preprocess = self.config, backbone.preprocess
        if isinstance(preprocess, TextPreprocessor):
            # Tokenizers have their own threads and are quickest with many texts at once.
            tokens = HashedTexts(TextInputs(self.any, preprocess, self.catalogue), self.any, self.catalogue)
            yield from itertools.chain.from_iterable(read_ahead(tokens, blocks, threads=1, ahead=2))
            return
        ahead = 2 * self.batch
        near = (ahead + config.decode_threads) * max(1, config.decode_processes)
        media = HashedMedia(MediaInputs(self.any, preprocess, self.catalogue, self.media_root, config, near))
        places = np.concatenate(blocks) if blocks else np.zeros(0, np.int64)
        yield from read_ahead(media, places, config.decode_threads, ahead, config.decode_processes)

    def _through(self, places: np.ndarray, inputs: Iterator[Made], encoder: PooledEncoder) -> Block:
        """Encodes the items of a block."""
        status, failures = np.full(len(places), PRESENT, np.uint8), {}
        content = np.zeros((len(places), 2), np.uint64)

        def readable() -> Iterator[np.ndarray]:
            for number, (numbers, made) in enumerate(itertools.islice(inputs, len(places))):
                content[number] = numbers
                if not isinstance(made, Missing):
                    yield made
                    continue
                status[number] = FAILED if made.failed else ABSENT
                if made.failed:
                    failures[self.catalogue["item"][int(places[number])]] = made.reason

        found = encoder(readable())
        states = [np.zeros((len(places), *here.shape[1:]), np.float32) for here in found]
        for full, here in zip(states, found, strict=True):
            full[status == PRESENT] = here
        self.failed += len(failures)
        return Block(places, states, status, content, failures)

    def _write(self, block: Block, pending: dict[str, np.ndarray]) -> int:
        """Writes a block, and gives back how many items it has."""
        places = block.places
        note_failures(self.store.files, self.name, int(self.rows[places[0]]), block.failures)
        for name, full in zip(self.group, block.states, strict=True):
            # A modality that is finished here stays as it is when it is encoded along with a later one.
            new = pending[name][places]
            if new.any():
                self.store.write(name, self.rows[places[new]], full[new], block.status[new], block.content[new])
        return len(places)

    def _report(self, name: str, computed: int, seconds: float, written: dict[str, str]) -> ModalityReport:
        status = self.store.status(name)[self.rows]
        absent, failed = (self.catalogue["item"].filter(pl.Series(status == kind)) for kind in (ABSENT, FAILED))
        # Failed items are tried anew in each run (until there are too many), absent ones have one reason.
        noted = noted_failures(self.store.files, self.name)
        reasons = partial(reasons_of, failed, absent, noted, absence(self.any.kind))
        report = ModalityReport(
            items=len(status),
            present=int((status == PRESENT).sum()),
            absent=len(absent),
            failed=len(failed),
            reasons=dict(itertools.islice(reasons(), EXAMPLES)),
            computed=computed,
            changed=int(self.changed[name].sum()) if name in self.changed else 0,
            seconds=round(seconds, 3),
            waited=round(self.waited, 3),
        )
        if self.processes.first:
            written[name] = as_json(report, reasons())
        return report
