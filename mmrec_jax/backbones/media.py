"""Raw media of items to a backbone's inputs; a broken or missing medium is a reason, not the end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl

from mmrec_jax.backbones.config import ModalityConfig
from mmrec_jax.backbones.image import ImagePreprocessor, MediaError, read_image
from mmrec_jax.backbones.text import TextPreprocessor, clean, fill_template

ABSENCE = {"text": "empty text", "image": "no path in the catalogue"}
"""By kind of modality, why an item is absent without having failed."""


@dataclass(frozen=True)
class Missing:
    """Why an item has no input.

    Attributes:
        reason: in words.
        failed: True for a medium that is named but broken or not found; False where the catalogue has none.
    """

    reason: str
    failed: bool


def text_inputs(
    config: ModalityConfig, preprocess: TextPreprocessor, catalogue: pl.DataFrame
) -> list[np.ndarray | Missing]:
    """Token ids of each item's text, or why there are none."""
    texts = [clean(text) for text in fill_template(config.template, catalogue)]
    ids = preprocess(texts)
    return [i if text else Missing(ABSENCE["text"], failed=False) for text, i in zip(texts, ids, strict=True)]


def image_inputs(
    config: ModalityConfig,
    preprocess: ImagePreprocessor,
    catalogue: pl.DataFrame,
    media_root: Path,
    max_pixels: int,
    threads: Executor,
) -> list[np.ndarray | Missing]:
    """Pixels of each item's image, or why there are none."""

    def read(path: str) -> np.ndarray | Missing:
        if not path:
            return Missing(ABSENCE["image"], failed=False)
        try:
            return preprocess(read_image(inside(media_root, path), max_pixels))
        except MediaError as error:
            return Missing(str(error), failed=True)

    return list(threads.map(read, fill_template(config.source, catalogue)))


def inside(root: Path, path: str) -> Path:
    """A media path of the catalogue, which must stay inside the root; links count by their target.

    Raises:
        MediaError: the path is absolute or leads outside of the root.
    """
    if "\0" in path or PurePosixPath(path).is_absolute() or Path(path).is_absolute():
        raise MediaError(f"path {path!r} is not relative to the media root")
    root = root.resolve()
    full = (root / path).resolve()
    if not full.is_relative_to(root):
        raise MediaError(f"path {path!r} leads outside of the media root")
    return full


Reader = Callable[[pl.DataFrame], list[np.ndarray | Missing]]
