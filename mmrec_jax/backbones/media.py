"""Raw media of items to a backbone's inputs; a broken or missing medium is a reason, not the end.

What is here runs in decoding workers too, threads or processes: it never touches a device.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl

from mmrec_jax.backbones.audio_features import AudioPreprocessor
from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig, template_columns
from mmrec_jax.backbones.image import ImagePreprocessor
from mmrec_jax.backbones.medium import MediaError, Medium, check_file
from mmrec_jax.backbones.text import TextPreprocessor, clean, fill_template, filled
from mmrec_jax.backbones.video import Bounds, VideoPreprocessor
from mmrec_jax.data.binary import BinaryColumn, parse_reference
from mmrec_jax.errors import ConfigError

Preprocessor = TextPreprocessor | ImagePreprocessor | VideoPreprocessor | AudioPreprocessor


@dataclass(frozen=True)
class Missing:
    """Why an item has no input.

    Attributes:
        reason: in words.
        failed: True for a medium that is named but broken or not found; False where the catalogue has none.
    """

    reason: str
    failed: bool


_SHOWN = 100  # characters of a path in a reason

Input = np.ndarray | Missing
"""An item's token ids [token], pixels [height width channel], frames [frame height width channel], or sound
[time *bin]; or why there is none."""


def absence(kind: str) -> str:
    """Why an item is absent without having failed."""
    return "empty text" if kind == "text" else f"no {kind} in the catalogue"


def inside(root: Path, path: str) -> Path:
    """A media path of the catalogue, which must stay inside the root; links count by their target.

    Raises:
        MediaError: the path is absolute, leads outside of the root, or its links lead round in a circle.
    """
    shown = repr(path if len(path) <= _SHOWN else f"{path[:_SHOWN]}...")  # base64 in the place of a path is long
    if "\0" in path or PurePosixPath(path).is_absolute() or Path(path).is_absolute():
        raise MediaError(f"path {shown} is not relative to the media root")
    try:
        root = root.resolve()
        full = (root / path).resolve()
    except (OSError, RuntimeError) as error:
        raise MediaError(f"path {shown} cannot be followed") from error
    if not full.is_relative_to(root):
        raise MediaError(f"path {shown} leads outside of the media root")
    return full


class TextInputs:
    """The items' texts as token ids, a group of items at a time."""

    def __init__(self, config: ModalityConfig, preprocess: TextPreprocessor, catalogue: pl.DataFrame):
        """Raises ConfigError where the catalogue lacks a column of the template, or one of them holds media."""
        fill_template(config.template, catalogue.head(0))
        self._template, self._preprocess = config.template, preprocess
        self._columns = catalogue.select(sorted(set(template_columns(config.template)[1])))
        for column in self._columns:
            first = column.drop_nulls().head(1)
            if column.dtype == pl.Binary or (column.dtype == pl.String and len(first) and parse_reference(first[0])):
                raise ConfigError(f"the template {config.template!r} names the column {column.name!r}, which is binary")

    def __call__(self, places: np.ndarray) -> list[Input]:
        """Token ids of each item's text, or why there are none."""
        texts = fill_template(self._template, self._columns[places])
        empty = Missing(absence("text"), failed=False)
        # A text of nothing but what the tokenizer drops (zero-width signs) has no tokens either.
        made = zip(texts, self._preprocess(texts), strict=True)
        return [ids if clean(text) and len(ids) else empty for text, ids in made]


class MediaInputs:
    """The items' files, or bytes, as what the encoder takes; one item at a time."""

    def __init__(
        self,
        config: ModalityConfig,
        preprocess: Preprocessor | None,
        catalogue: pl.DataFrame,
        root: Path,
        limits: ExtractionConfig,
        near: int,
    ):
        """Args:
        config: what the media are.
        preprocess: the backbone's; None where media are named and not read.
        catalogue: one row an item.
        root: folder that paths are relative to.
        limits: on the media's size.
        near: how far apart items that are asked for at a time may be.

        Raises:
            ConfigError: the catalogue lacks a column.
        """
        self.root = root
        self._media = named_media(config, catalogue)
        self._kind, self._near = config.kind, near
        if preprocess is not None:
            self._decode = _decoder(preprocess, limits)
        self._columns: dict[tuple[str, str], BinaryColumn] = {}

    def __call__(self, place: int) -> Input:
        """An item's input, or why there is none."""
        try:
            medium = self.medium(place)
            return Missing(absence(self._kind), failed=False) if medium is None else self._decode(medium)
        except MediaError as error:
            return Missing(str(error), failed=True)

    def named(self, place: int) -> str | bytes | None:
        """An item's path, reference or bytes; empty or None where it has none."""
        return self._media[int(place)]

    def medium(self, place: int) -> Medium | None:
        """An item's medium; None where it has none.

        Raises:
            MediaError: it is nowhere, or outside of the root.
        """
        return self._medium(self.named(place))

    def _medium(self, named: str | bytes | None) -> Medium | None:
        if not named or isinstance(named, bytes):
            return named or None
        reference = parse_reference(named)
        if reference is None:
            return inside(self.root, named)
        file, column, row = reference
        path = inside(self.root, file)
        check_file(path)
        return self._columns.setdefault((file, column), BinaryColumn(path, column, self._near))[row] or None


def named_media(config: ModalityConfig, catalogue: pl.DataFrame) -> pl.Series:
    """Each item's path, reference or bytes; empty or null where it has none."""
    if config.column and config.column in catalogue.columns and catalogue[config.column].dtype == pl.Binary:
        return catalogue[config.column]
    return filled(config.source, catalogue)


def files_stamp(config: ModalityConfig, catalogue: pl.DataFrame, root: Path) -> str:
    """Digest of names, sizes and times of change of the files that items name; "" where there is none of them, such as
    for texts, for bytes in the catalogue, and where the files are somewhere else now.
    """
    if config.kind == "text":
        return ""
    named = named_media(config, catalogue)
    if named.dtype == pl.Binary:
        return ""
    digest, found = hashlib.sha256(), False
    for name in named.drop_nulls().unique().sort():
        reference = parse_reference(name)
        try:
            about = os.stat(os.path.join(root, reference[0] if reference else name)) if name else None
        except (OSError, ValueError):
            about = None
        found |= about is not None
        digest.update(f"{name}\0{about and (about.st_size, about.st_mtime_ns)}\n".encode())
    return digest.hexdigest() if found else ""


def _decoder(preprocess: Preprocessor, limits: ExtractionConfig) -> Callable[[Medium], np.ndarray]:
    if isinstance(preprocess, ImagePreprocessor):
        return partial(preprocess.read, max_pixels=limits.max_pixels)
    if isinstance(preprocess, VideoPreprocessor):
        return partial(preprocess.read, bounds=Bounds(limits.max_pixels, limits.max_video_seconds))
    if isinstance(preprocess, AudioPreprocessor):
        return preprocess.read
    raise TypeError(f"{type(preprocess).__name__} reads no files")
