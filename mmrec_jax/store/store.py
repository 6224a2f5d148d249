"""The hidden-state store: pooled hidden states of a catalogue on disk, with presence and fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64

from mmrec_jax.backbones.config import ModalityConfig, resolve_layers
from mmrec_jax.errors import NotFiniteError, StoreError, StoreMismatchError
from mmrec_jax.shards import Shards
from mmrec_jax.store.arrays import (
    chunk_rows,
    create_array,
    key_value_store,
    open_array,
    read_json,
    read_version,
    store_errors,
    without_links,
    write_json,
)
from mmrec_jax.store.content import RULE
from mmrec_jax.store.fingerprint import differences, dtype_difference
from mmrec_jax.store.loading import load
from mmrec_jax.store.lock import alone
from mmrec_jax.store.quantise import quantise
from mmrec_jax.store.table import StateTable

FORMAT = 1
PENDING, PRESENT, ABSENT, FAILED = 0, 1, 2, 3
STATUS_ROWS = 16384  # items in a file of status
_NAMED = 5  # items listed in an error


@dataclass(frozen=True)
class ModalityInfo:
    """What the store holds of a modality.

    Attributes:
        width: features of a hidden state.
        layers: indices of the stored hidden states, ascending.
        pooling: "cls" or "mean".
        dtype: "float32", "bfloat16" or "int8".
        fingerprint: how the states were made: backbone, weights_sha256, preprocessing, template, ...
        content_rule: by which version of `store/content.py` what items were made of is kept; 0 is not at all.
    """

    width: int
    layers: tuple[int, ...]
    pooling: str
    dtype: str
    fingerprint: dict
    content_rule: int = 0

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the modality's arrays, in the order in which items are written."""
        scales = ("scales",) if self.dtype == "int8" else ()
        return "values", *scales, *(("content",) if self.content_rule else ()), "status"


class HiddenStateStore:
    """A store at a local path or a gs:// URL.

    Per modality it has arrays `values` [item, layer, width], `scales` [item, layer] (int8 only), `content` [item, 2]
    (what the item was made of, see `store/content.py`; not in stores of earlier versions) and `status` [item]
    (0 pending, 1 present, 2 absent, 3 failed). An item's status is written after its states, so that a kill leaves no
    half-written item that looks finished.
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
            with alone(location):
                cls._begin(location, item_ids)
        store = cls.open(location)
        known = set(store.item_ids)
        if not known.issuperset(item_ids):
            with alone(location):
                store._append(item_ids)
        return store

    @classmethod
    def _begin(cls, location: str | Path, item_ids: list[str]) -> None:
        """Makes an empty store where there is still none."""
        files = key_value_store(location)
        _, before = read_version(files, "items.json")
        content, version = read_version(files, "store.json")
        if content is None and write_json(files, "items.json", item_ids, before):
            write_json(files, "store.json", {"format": FORMAT, "modalities": {}}, version)

    def refresh(self) -> None:
        """Finds out about modalities and items that another process has added."""
        found = self.open(self.location)
        self.item_ids, self.modalities = found.item_ids, found.modalities

    def add_modality(self, name: str, info: ModalityInfo) -> None:
        """Makes the empty arrays of a modality; nothing happens where the store has it already, by whatever process."""
        if name in self.modalities:
            return
        if not name.isidentifier():
            raise StoreError(f"modality name {name!r} must be letters, digits and underscores")
        with alone(self.location):
            self.refresh()
            if name not in self.modalities:
                self._make_arrays(name, info)
                self._name_modality(name, info)
                self.refresh()

    def _make_arrays(self, name: str, info: ModalityInfo) -> None:
        items, layers = len(self.item_ids), len(info.layers)
        create_array(self.files, f"{name}/values", (items, layers, info.width), info.dtype)
        if info.dtype == "int8":
            # Files of as many items as those of the values, so that two processes seldom write to the same one.
            rows = chunk_rows(open_array(self.files, f"{name}/values"))
            create_array(self.files, f"{name}/scales", (items, layers), "float32", rows)
        if info.content_rule:
            create_array(self.files, f"{name}/content", (items, 2), "uint64", STATUS_ROWS)
        create_array(self.files, f"{name}/status", (items,), "uint8", STATUS_ROWS)

    def _name_modality(self, name: str, info: ModalityInfo) -> None:
        """Adds a modality to those that the store says it has."""
        while True:
            content, version = read_version(self.files, "store.json")
            assert isinstance(content, dict)  # the store was opened
            content["modalities"].setdefault(name, asdict(info))
            if write_json(self.files, "store.json", content, version):
                return

    def write(
        self,
        name: str,
        rows: Int[np.ndarray, " item"],
        states: Float[np.ndarray, "item layer width"],
        status: UInt8[np.ndarray, " item"],
        content: UInt64[np.ndarray, "item 2"] | None = None,
    ) -> None:
        """Writes finished items: first the states, then what they were made of, then that they are finished.

        Raises:
            NotFiniteError: the states of present items are not all finite; the items are named.
        """
        info = self.modalities[name]
        self.require_finite(name, states[status == PRESENT], rows[status == PRESENT])
        if info.dtype == "int8":
            values, scales = quantise(states)
            self._write("scales", name, rows, scales)
        else:
            values = states.astype(ml_dtypes.bfloat16 if info.dtype == "bfloat16" else np.float32)
        self._write("values", name, rows, values)
        if content is not None and info.content_rule:
            self.write_content(name, rows, content)
        self._write("status", name, rows, status)

    def write_content(self, name: str, rows: Int[np.ndarray, " item"], content: UInt64[np.ndarray, "item 2"]) -> None:
        """Writes what items were made of: hash and stamp of each."""
        self._write("content", name, rows, content)

    def content(self, name: str) -> UInt64[np.ndarray, "item 2"]:
        """Hash and stamp of what each item was made of, in the store's order; 0 where it is not known."""
        if self.modalities[self._known(name)].content_rule != RULE:
            return np.zeros((len(self.item_ids), 2), np.uint64)
        array = open_array(self.files, f"{name}/content")
        with store_errors(f"content of modality {name} cannot be read from {self.location}"):
            return array.read().result()[: len(self.item_ids)]

    def forget(self, name: str, rows: Int[np.ndarray, " item"]) -> None:
        """Marks items as ones that extraction has not been through."""
        self._write("status", name, rows, np.full(len(rows), PENDING, np.uint8))

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

    def check(self, modalities: Mapping[str, ModalityConfig], dtype: str = "") -> None:
        """Makes sure that the store holds what the config asks for.

        Args:
            modalities: of the config.
            dtype: its `extraction.dtype`; "" takes states of any type.

        Raises:
            StoreMismatchError: it does not; every difference of every modality is listed.
        """
        found = []
        for name, config in modalities.items():
            if name not in self.modalities:
                found.append(f"{name}: the store has only {', '.join(self.modalities) or 'no modality'}")
                continue
            info = self.modalities[name]
            unlike = differences(config, info.fingerprint, info.layers)
            unlike += dtype_difference(dtype or info.dtype, info.dtype)
            found += [f"{name}: {difference}" for difference in unlike]
        if found:
            raise StoreMismatchError(
                f"the hidden-state store {self.location} does not fit the config: {'; '.join(found)}. "
                "Change the config, or extract into another store"
            )

    def table(
        self, modalities: Mapping[str, tuple[int, ...]], item_ids: Sequence[str], shards: Shards | None = None
    ) -> StateTable:
        """Reads a catalogue's states into memory: over a mesh, those rows that devices of this process have.

        Args:
            modalities: name -> layers to read; () is every second one from 0 up to the backbone's depth.
            item_ids: in catalogue order; item i becomes row i + 1, row 0 is padding.
            shards: of the mesh.

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
            values[name] = load(self, name, "values", rows, selected, shards)
            if self.modalities[name].dtype == "int8":
                scales[name] = load(self, name, "scales", rows, selected, shards)
            present[name] = np.concatenate([[False], status == PRESENT])
        complete = all(mask[1:].all() for mask in present.values())
        put = jax.device_put if shards is None else shards.by_rows
        return StateTable(values, scales, jax.tree.map(put, present), complete=bool(complete), shards=shards)

    def present(self, modalities: Iterable[str], item_ids: Sequence[str]) -> dict[str, Bool[np.ndarray, " row"]]:
        """Modality -> which rows of `table` have it."""
        rows = self.rows(item_ids)
        return {name: np.concatenate([[False], (self.status(name) == PRESENT)[rows]]) for name in modalities}

    def _layer_positions(self, name: str, layers: tuple[int, ...]) -> list[int]:
        info = self.modalities[self._known(name)]
        wanted = resolve_layers(layers, info.fingerprint["depth"], f"modality {name}")
        if lacking := [layer for layer in wanted if layer not in info.layers]:
            raise StoreError(f"modality {name}: layers {lacking} are not stored; stored are {list(info.layers)}")
        return [info.layers.index(layer) for layer in wanted]

    def require_finite(self, name: str, states: np.ndarray, rows: np.ndarray) -> None:
        """Makes sure that states of store rows are finite.

        Raises:
            NotFiniteError: they are not; the items are named.
        """
        if states.dtype.kind == "i":
            return
        finite = np.isfinite(states.astype(np.float32, copy=False)).all(axis=tuple(range(1, states.ndim)))
        if not finite.all():
            bad = np.asarray(rows)[~finite]
            raise NotFiniteError(
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

    def _append(self, item_ids: list[str]) -> None:
        """Adds those of the items that the store still lacks."""
        while True:
            self.refresh()
            listed, version = read_version(self.files, "items.json")
            assert isinstance(listed, list)  # the store was opened
            known = set(listed)
            every = listed + [item for item in item_ids if item not in known]
            # The arrays grow before the list of items: killed in between, the surplus rows are not used yet.
            for name, info in self.modalities.items():
                for kind in info.arrays:
                    array = open_array(self.files, f"{name}/{kind}")
                    if array.shape[0] < len(every):
                        array.resize(exclusive_max=[len(every), *array.shape[1:]]).result()
            if len(every) == len(listed) or write_json(self.files, "items.json", every, version):
                self.item_ids = every
                return

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
