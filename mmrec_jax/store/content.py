"""What items were made of, in two numbers an item and modality by which a later change is noticed.

- The *hash*: of a text the filled template; of a file its path relative to the data directory, its size, and its first
  and last 64 KiB; of bytes in a table the bytes. The time of change is no part of it: it is another one after a copy, a
  download or a clone, and all would be encoded again for nothing. Neither is all of a file, since videos are long.
- The *stamp* of a file, or of the Parquet file that bytes lie in: name, size and time of change. Where it is as it was,
  nothing is read: looking at a million files is a million calls of `stat`. Where it is not, the hash decides.

0 is not known: in a store that was made before there were hashes, or of a file that is somewhere else now. Such items
are taken as they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Bool, UInt64

from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig, template_columns
from mmrec_jax.backbones.media import Input, MediaInputs, TextInputs, named_media
from mmrec_jax.backbones.medium import MediaError
from mmrec_jax.backbones.text import filled
from mmrec_jax.data.binary import parse_reference
from mmrec_jax.errors import DataError, StoreError

if TYPE_CHECKING:
    from mmrec_jax.store.store import HiddenStateStore

RULE = 1  # grows when the same content would get another hash
UNKNOWN = 0
_END = 64 * 1024
_THREADS = 8


class Made(NamedTuple):
    """An item's input, and the hash and stamp of what it was made of."""

    content: tuple[int, int]
    input: Input


class HashedTexts:
    """What `TextInputs` makes, with hashes."""

    def __init__(self, texts: TextInputs, config: ModalityConfig, catalogue: pl.DataFrame):
        self._texts, self._config, self._catalogue = texts, config, catalogue

    def __call__(self, places: np.ndarray) -> list[Made]:
        hashes = _of_texts(self._config, self._catalogue[places])
        return [Made((int(number), UNKNOWN), made) for number, made in zip(hashes, self._texts(places), strict=True)]


class HashedMedia:
    """What `MediaInputs` makes, with hashes and stamps from before reading: what changes meanwhile is noticed later."""

    def __init__(self, media: MediaInputs):
        self._media = media

    def __call__(self, place: int) -> Made:
        root = self._media.root
        stamp = _hash(_stamp(self._media.named(place), partial(_about, root)))
        content = _content(self._media, place)
        return Made((content, stamp if content else UNKNOWN), self._media(place))


def changed_items(
    store: HiddenStateStore, modalities: Mapping[str, ModalityConfig], catalogue: pl.DataFrame, media_root: Path
) -> dict[str, Bool[np.ndarray, " item"]]:
    """Modality -> items of a catalogue whose states in a store were made of something else than they would be now.

    Stamps of files that turn out to be as they were are brought up to date, where the store can be written to.

    Args:
        store: to look at.
        modalities: those that the store lacks are passed over.
        catalogue: one row an item; where it lacks a column, no change of that modality is seen.
        media_root: folder that media paths are relative to.
    """
    from mmrec_jax.store.store import PENDING

    found = {}
    rows = store.rows(catalogue["item"].cast(pl.String).to_list())
    for name in modalities.keys() & store.modalities.keys():
        found[name] = np.zeros(len(rows), bool)
        if not set(template_columns(modalities[name].source)[1]) <= set(catalogue.columns):
            continue
        kept = store.content(name)[np.maximum(rows, 0)]
        kept[(rows < 0) | (store.status(name)[np.maximum(rows, 0)] == PENDING)] = UNKNOWN
        if not kept[:, 0].any():
            continue
        if modalities[name].kind == "text":
            found[name] = (kept[:, 0] != UNKNOWN) & (_of_texts(modalities[name], catalogue) != kept[:, 0])
            continue
        found[name], as_before, now = _changed_media(modalities[name], catalogue, media_root, kept)
        if as_before.any():
            with contextlib.suppress(StoreError):  # of a store that may only be read
                store.write_content(name, rows[as_before], now[as_before])
    return found


def _changed_media(
    modality: ModalityConfig, catalogue: pl.DataFrame, root: Path, kept: UInt64[np.ndarray, "item 2"]
) -> tuple[Bool[np.ndarray, " item"], Bool[np.ndarray, " item"], UInt64[np.ndarray, "item 2"]]:
    """Which items have changed, which have another stamp only, and the numbers of these as they are now."""
    about = cache(partial(_about, root))  # many items may lie in one table
    stamps = _hashes(_stamp(named, about) for named in named_media(modality, catalogue))
    now = np.stack([kept[:, 0], stamps], axis=1)
    doubtful = np.flatnonzero((kept[:, 0] != UNKNOWN) & (stamps != UNKNOWN) & (stamps != kept[:, 1]))
    media = MediaInputs(modality, None, catalogue, root, ExtractionConfig(), near=2 * _THREADS)
    with ThreadPoolExecutor(_THREADS) as threads:
        hashes = np.fromiter(threads.map(partial(_content, media), doubtful), np.uint64, len(doubtful))
    changed, as_before = np.zeros(len(kept), bool), np.zeros(len(kept), bool)
    changed[doubtful] = (hashes != UNKNOWN) & (hashes != kept[doubtful, 0])
    as_before[doubtful] = hashes == kept[doubtful, 0]
    return changed, as_before, now


def _hashes(contents: Iterable[bytes | None]) -> UInt64[np.ndarray, " item"]:
    """Of each content; `UNKNOWN` for None. Not polars' own hash, which another version of it may give other values."""
    # A loop over items, and faster than hashing them in numpy: a million titles take 1.5 seconds.
    digest, none = hashlib.blake2b, bytes(8)
    made = [none if content is None else digest(content, digest_size=8).digest() for content in contents]
    hashes = np.frombuffer(b"".join(made), "<u8").astype(np.uint64)
    known = np.fromiter((each is not none for each in made), bool, len(made))
    return np.where(known, np.maximum(hashes, 1), np.uint64(UNKNOWN))


def _hash(content: bytes | None) -> int:
    return int(_hashes([content])[0])


def _of_texts(config: ModalityConfig, catalogue: pl.DataFrame) -> UInt64[np.ndarray, " item"]:
    return _hashes(map(str.encode, filled(config.template, catalogue)))


def _about(root: Path, name: str) -> tuple[int, int] | None:
    """Size and time of change of a file; None where there is none."""
    try:
        about = os.stat(os.path.join(root, name))
    except (OSError, ValueError):
        return None
    return (about.st_size, about.st_mtime_ns) if stat.S_ISREG(about.st_mode) else None


def _stamp(named: str | bytes | None, about: Callable[[str], tuple[int, int] | None]) -> bytes | None:
    if not named or isinstance(named, bytes):
        return named or b""
    reference = parse_reference(named)
    found = about(reference[0] if reference else named)
    return found and f"{named}\0{found}".encode()


def _content(media: MediaInputs, place: int) -> int:
    """The hash of an item's medium."""
    named = media.named(place)
    try:
        medium = media.medium(place)
        if isinstance(medium, Path):
            assert isinstance(named, str)  # a path was made of it
            about = _about(media.root, named)
            return UNKNOWN if about is None else _hash(f"{named}\0{about[0]}\0".encode() + _ends(medium, about[0]))
    except (MediaError, DataError, OSError):
        return UNKNOWN
    return _hash(medium or b"")


def _ends(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        first = file.read(_END)
        file.seek(max(_END, size - _END))
        return first + file.read(_END)
