"""The hidden-state store: pooled hidden states of a catalogue on disk, with presence and fingerprint."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Float, Int, UInt8

from mmrec_jax.backbones.config import ModalityConfig, resolve_layers
from mmrec_jax.errors import StoreError, StoreMismatchError
from mmrec_jax.store.arrays import (
    chunk_rows,
    create_array,
    key_value_store,
    open_array,
    read_json,
    store_errors,
    without_links,
    write_json,
)
from mmrec_jax.store.fingerprint import differences
from mmrec_jax.store.quantise import quantise
from mmrec_jax.store.table import StateTable

FORMAT = 1
PENDING, PRESENT, ABSENT, FAILED = 0, 1, 2, 3
STATUS_ROWS = 16384  # items in a file of status
_NAMED = 5  # items listed in an error
_READ_AHEAD = 4  # chunks in flight while a table is loaded


@dataclass(frozen=True)
class ModalityInfo:
    """What the store holds of a modality.

    Attributes:
        width: features of a hidden state.
        layers: indices of the stored hidden states, ascending.
        pooling: "cls" or "mean".
        dtype: "float32", "bfloat16" or "int8".
        fingerprint: how the states were made: backbone, weights_sha256, preprocessing, template, ...
    """

    width: int
    layers: tuple[int, ...]
    pooling: str
    dtype: str
    fingerprint: dict


class HiddenStateStore:
    """A store at a local path or a gs:// URL.

    Per modality it has arrays `values` [item, layer, width], `scales` [item, layer] (int8 only) and `status`
    [item] (0 pending, 1 present, 2 absent, 3 failed). An item's status is written after its states, so that a
    kill leaves no half-written item that looks finished.
    """

    def __init__(self, location: str | Path, item_ids: Sequence[str], modalities: Mapping[str, ModalityInfo]):
        self.location = str(location)
        self.item_ids: list[str] = list(item_ids)
        self.modalities: dict[str, ModalityInfo] = dict(modalities)
        self.files = key_value_store(location)

    @classmethod
    def open(cls, location: str | Path) -> HiddenStateStore:
        """Opens a store.

        Raises:
            StoreError: there is none, it is damaged, or of another format version.
        """
        location = without_links(location)
        files = key_value_store(location)
        content, items = read_json(files, "store.json"), read_json(files, "items.json")
        if not isinstance(content, dict) or not isinstance(items, list):
            raise StoreError(f"there is no hidden-state store at {location}: make it with --mode=extract")
        if content.get("format") != FORMAT:
            raise StoreError(f"store {location} has format {content.get('format')!r}; this version reads {FORMAT}")
        infos = {
            name: ModalityInfo(**{**info, "layers": tuple(info["layers"])})
            for name, info in content["modalities"].items()
        }
        return cls(location, items, infos)

    @classmethod
    def create(cls, location: str | Path, item_ids: Sequence[str]) -> HiddenStateStore:
        """Opens a store or makes an empty one; items that it lacks are appended, the others keep their rows.

        Raises:
            StoreError: item ids are empty or occur twice.
        """
        item_ids = list(item_ids)
        if len(set(item_ids)) != len(item_ids) or "" in item_ids:
            raise StoreError("item ids of a store must be distinct and not empty")
        if read_json(key_value_store(location), "store.json") is None:
            store = cls(location, item_ids, {})
            write_json(store.files, "items.json", item_ids)
            store._write_info()
            return store
        store = cls.open(location)
        known = set(store.item_ids)
        if added := [item for item in item_ids if item not in known]:
            store._append(added)
        return store

    def refresh(self) -> None:
        """Finds out about modalities and items that another process has added."""
        found = self.open(self.location)
        self.item_ids, self.modalities = found.item_ids, found.modalities

    def add_modality(self, name: str, info: ModalityInfo) -> None:
        """Makes the empty arrays of a modality; nothing happens where the store has it already."""
        if name in self.modalities:
            return
        if not name.isidentifier():
            raise StoreError(f"modality name {name!r} must be letters, digits and underscores")
        items, layers = len(self.item_ids), len(info.layers)
        create_array(self.files, f"{name}/values", (items, layers, info.width), info.dtype)
        if info.dtype == "int8":
            # Files of as many items as those of the values, so that two processes seldom write to the same one.
            rows = chunk_rows(open_array(self.files, f"{name}/values"))
            create_array(self.files, f"{name}/scales", (items, layers), "float32", rows)
        create_array(self.files, f"{name}/status", (items,), "uint8", STATUS_ROWS)
        self.modalities[name] = info
        self._write_info()

    def write(
        self,
        name: str,
        rows: Int[np.ndarray, " item"],
        states: Float[np.ndarray, "item layer width"],
        status: UInt8[np.ndarray, " item"],
    ) -> None:
        """Writes finished items: first the states, then that they are finished.

        Raises:
            StoreError: the states of present items are not all finite; the items are named.
        """
        info = self.modalities[name]
        self._require_finite(name, states[status == PRESENT], rows[status == PRESENT])
        if info.dtype == "int8":
            values, scales = quantise(states)
            self._write("scales", name, rows, scales)
        else:
            values = states.astype(ml_dtypes.bfloat16 if info.dtype == "bfloat16" else np.float32)
        self._write("values", name, rows, values)
        self._write("status", name, rows, status)

    def status(self, name: str) -> UInt8[np.ndarray, " item"]:
        """Each item's state of work, in the store's order: PENDING, PRESENT, ABSENT or FAILED."""
        array = open_array(self.files, f"{self._known(name)}/status")
        with store_errors(f"status of modality {name} cannot be read from {self.location}"):
            return array.read().result()[: len(self.item_ids)]

    def complete(self, name: str) -> bool:
        """Whether every item of the store has the modality."""
        return bool((self.status(name) == PRESENT).all())

    def missing(self, modalities: Iterable[str], item_ids: Sequence[str]) -> dict[str, list[str]]:
        """Per modality, the items that extraction has not been through, unknown ones included."""
        rows = self.rows(item_ids)
        result = {}
        for name in modalities:
            pending = rows < 0
            if name in self.modalities:
                pending |= self.status(name)[np.maximum(rows, 0)] == PENDING
            else:
                pending[:] = True
            result[name] = [item_ids[int(i)] for i in np.flatnonzero(pending)]
        return result

    def check(self, modalities: Mapping[str, ModalityConfig]) -> None:
        """Makes sure that the store holds what the config asks for.

        Raises:
            StoreMismatchError: it does not; every difference of every modality is listed.
        """
        found = []
        for name, config in modalities.items():
            if name not in self.modalities:
                found.append(f"{name}: the store has only {', '.join(self.modalities) or 'no modality'}")
                continue
            info = self.modalities[name]
            found += [f"{name}: {difference}" for difference in differences(config, info.fingerprint, info.layers)]
        if found:
            raise StoreMismatchError(
                f"the hidden-state store {self.location} does not fit the config: {'; '.join(found)}. "
                "Change the config, or extract into another store"
            )

    def table(self, modalities: Mapping[str, tuple[int, ...]], item_ids: Sequence[str]) -> StateTable:
        """Reads a catalogue's states into memory.

        Args:
            modalities: name -> layers to read; () is every second one from 0 up to the backbone's depth.
            item_ids: in catalogue order; item i becomes row i + 1, row 0 is padding.

        Raises:
            StoreError: a modality, layer or item is not in the store, or states are not finite.
        """
        rows = self.rows(item_ids)
        if (unknown := np.flatnonzero(rows < 0)).size:
            raise StoreError(
                f"store {self.location} lacks {unknown.size} items of the catalogue: "
                f"{self._some(unknown, item_ids)}: run --mode=extract"
            )
        values, scales, present = {}, {}, {}
        for name, layers in modalities.items():
            status = self.status(name)[rows]
            if (pending := np.flatnonzero(status == PENDING)).size:
                raise StoreError(
                    f"modality {name} is not extracted for {pending.size} items: "
                    f"{self._some(pending, item_ids)}: run --mode=extract"
                )
            selected = self._layer_positions(name, layers)
            values[name] = self._load(name, "values", rows, selected)
            if self.modalities[name].dtype == "int8":
                scales[name] = self._load(name, "scales", rows, selected)
            present[name] = np.concatenate([[False], status == PRESENT])
        complete = all(mask[1:].all() for mask in present.values())
        return StateTable(values, scales, jax.device_put(present), complete=bool(complete))

    def _layer_positions(self, name: str, layers: tuple[int, ...]) -> list[int]:
        info = self.modalities[self._known(name)]
        wanted = resolve_layers(layers, info.fingerprint["depth"], f"modality {name}")
        if lacking := [layer for layer in wanted if layer not in info.layers]:
            raise StoreError(f"modality {name}: layers {lacking} are not stored; stored are {list(info.layers)}")
        return [info.layers.index(layer) for layer in wanted]

    def _load(self, name: str, kind: str, rows: np.ndarray, layers: list[int]) -> tuple[jax.Array, ...]:
        """One array a layer, read chunk by chunk into what the device uses (on CPU without a copy)."""
        source = open_array(self.files, f"{name}/{kind}")
        shape = (len(rows) + 1, *source.shape[2:])
        targets = [_aligned_zeros(shape, source.dtype.numpy_dtype) for _ in layers]
        # Store row -> table row; 0 for store rows that the catalogue lacks.
        places = np.zeros(source.shape[0], np.int64)
        places[rows] = np.arange(1, len(rows) + 1)
        step = chunk_rows(source)
        starts = [s for s in range(0, source.shape[0], step) if places[s : s + step].any()]
        reads = [source[start : min(start + step, source.shape[0])].read for start in starts]
        ahead = deque(read() for read in reads[:_READ_AHEAD])
        for number, start in enumerate(starts):
            with store_errors(f"{kind} of modality {name} cannot be read from {self.location}"):
                chunk = ahead.popleft().result()
            ahead.extend(read() for read in reads[number + _READ_AHEAD : number + _READ_AHEAD + 1])
            put = places[start : start + step]
            chosen = np.flatnonzero(put)
            self._require_finite(name, chunk[chosen], start + chosen)
            for target, layer in zip(targets, layers, strict=True):
                target[put[chosen]] = chunk[chosen, layer]
        return tuple(jax.device_put(target, may_alias=True) for target in targets)

    def _require_finite(self, name: str, states: np.ndarray, rows: np.ndarray) -> None:
        if states.dtype.kind == "i":
            return
        finite = np.isfinite(states.astype(np.float32, copy=False)).all(axis=tuple(range(1, states.ndim)))
        if not finite.all():
            bad = np.asarray(rows)[~finite]
            raise StoreError(
                f"hidden states of modality {name} are not finite (NaN or infinity) for {bad.size} items: "
                f"{self._some(bad, self.item_ids)}: check these items' media and the backbone's weights"
            )

    def rows(self, item_ids: Sequence[str]) -> Int[np.ndarray, " item"]:
        """Store rows of items; -1 for those it lacks."""
        row_of = {item: row for row, item in enumerate(self.item_ids)}
        return np.fromiter((row_of.get(item, -1) for item in item_ids), np.int64, len(item_ids))

    def _write(self, kind: str, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        array = open_array(self.files, f"{name}/{kind}")
        with store_errors(f"{kind} of modality {name} cannot be written to {self.location}"):
            array[rows].write(values).result()

    def _append(self, added: list[str]) -> None:
        # The arrays grow before the list of items: killed in between, the surplus rows are not used yet.
        total = len(self.item_ids) + len(added)
        for name, info in self.modalities.items():
            for kind in ("values", "status", *(("scales",) if info.dtype == "int8" else ())):
                array = open_array(self.files, f"{name}/{kind}")
                array.resize(exclusive_max=[total, *array.shape[1:]]).result()
        self.item_ids += added
        write_json(self.files, "items.json", self.item_ids)

    def _write_info(self) -> None:
        content = {
            "format": FORMAT,
            "modalities": {name: asdict(info) for name, info in self.modalities.items()},
        }
        write_json(self.files, "store.json", content)

    def _known(self, name: str) -> str:
        if name not in self.modalities:
            raise StoreError(
                f"store {self.location} has no modality {name!r}; it has {', '.join(self.modalities) or 'none'}"
            )
        return name

    @staticmethod
    def _some(positions: np.ndarray, item_ids: Sequence[str]) -> str:
        listed = ", ".join(item_ids[i] for i in positions[:_NAMED])
        return listed + (", ..." if len(positions) > _NAMED else "")


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros on a page boundary, which JAX on CPU takes over as they are instead of copying."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.zeros(size + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + size].view(dtype).reshape(shape)
