"""The raw inputs of a catalogue on disk, made once and memory-mapped: what a backbone takes, before it is batched.

They stay on the host because only the host can choose a batch's shapes by how long its texts are, and because the
catalogue's pixels need not fit into a device. A batch's rows are read while the step before it is computed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Int

from mmrec_jax.backbones.audio_features import AudioPreprocessor
from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig
from mmrec_jax.backbones.image import ImagePreprocessor
from mmrec_jax.backbones.media import Input, MediaInputs, Missing, Preprocessor, TextInputs, files_stamp
from mmrec_jax.backbones.text import TextPreprocessor
from mmrec_jax.backbones.video import VideoPreprocessor
from mmrec_jax.errors import ConfigError, StoreError
from mmrec_jax.store.reading import read_ahead

_TEXTS_AT_ONCE = 4096
_NAMED = 3  # failures in a message


@dataclass(frozen=True)
class RawInputs:
    """Inputs of the catalogue's items, of any lengths, one after another; row 0 is padding and has none.

    Attributes:
        values: of all items: token ids (int32), sound (float32), or pixels before they are normalised (uint8).
        starts: where each item's values begin, and where the last one's end.
        present: whether an item has any.
        shape: of one step of an item: () for texts and samples, (bins,) for spectrograms, (height, width, channel).
        failures: item -> why its medium could not be read.
    """

    values: np.ndarray
    starts: Int[np.ndarray, " row_and_end"]
    present: Bool[np.ndarray, " row"]
    shape: tuple[int, ...]
    failures: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, row: int) -> np.ndarray:
        """[token] of a text, [time *bin] of sound, [1 height width channel] of an image, [frame ...] of a video."""
        return self.values[self.starts[row] : self.starts[row + 1]].reshape(-1, *self.shape)

    def lengths(self, rows: Int[np.ndarray, " item"]) -> Int[np.ndarray, " item"]:
        """Tokens, steps of time or frames of items."""
        return (self.starts[rows + 1] - self.starts[rows]) // int(np.prod(self.shape, dtype=np.int64))


def unnormalised(preprocess: Preprocessor) -> Preprocessor:
    """The preprocessing that leaves pixels at 0..255, which then fit into a byte; others as they are."""
    if isinstance(preprocess, ImagePreprocessor):
        return _bytes(preprocess)
    if isinstance(preprocess, VideoPreprocessor):
        return replace(preprocess, image=_bytes(preprocess.image))
    return preprocess


def _bytes(preprocess: ImagePreprocessor) -> ImagePreprocessor:
    return replace(preprocess, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)


def prepare_inputs(
    modality: ModalityConfig,
    preprocess: Preprocessor,
    catalogue: pl.DataFrame,
    media_root: Path,
    limits: ExtractionConfig,
    directory: Path,
    name: str,
) -> RawInputs:
    """The inputs of a catalogue's items, made on the first call and opened later; made anew where files that they were
    made of have another size or time of change now.

    A killed preparation leaves nothing that is taken for a whole one, and starts again; the next one below the same
    folder removes what it left. Processes that prepare there at the same time wait for each other.

    Args:
        modality: what the media are.
        preprocess: the backbone's.
        catalogue: one row an item, in the order of the table's rows after the padding row.
        media_root: folder that media paths are relative to.
        limits: on sizes, threads and the share of broken media.
        directory: where they are kept.
        name: of the modality, for messages.

    Raises:
        ConfigError: a missing column, or images of several sizes.
        StoreError: more media than `limits.max_failure_share` are broken, or no item has the modality.
    """
    stamp = files_stamp(modality, catalogue, media_root)
    if not _made_of(directory, stamp):
        pixels = preprocess.image if isinstance(preprocess, VideoPreprocessor) else preprocess
        if isinstance(pixels, ImagePreprocessor) and not pixels.output:
            raise ConfigError(
                f"methods.{name}: the backbone's preprocessor_config.json makes images of several sizes, and live "
                "ones need one: set its `crop_size`."
            )
        with _alone(directory.parent):
            if not _made_of(directory, stamp):  # by another process, while this one waited
                unfinished = directory.with_name(f".{directory.name}.{os.getpid()}")
                unfinished.mkdir(exist_ok=True)
                try:
                    _write(modality, preprocess, catalogue, media_root, limits, unfinished, name, stamp)
                    _put(unfinished, directory, stamp)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    return open_inputs(directory)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process makes inputs in a folder, and removes what killed ones left there.

    A lock, since the number of a process on another host, or in another container, tells nothing here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: whose a leftover is cannot be told
            yield
            return
        for left in folder.glob(".*.[0-9]*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _made_of(directory: Path, stamp: str) -> bool:
    """Whether a directory holds a whole preparation of the files as they are; "" is files that cannot be asked."""
    try:
        about = json.loads((directory / "inputs.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return not stamp or about.get("files") == stamp


def _put(made: Path, directory: Path, stamp: str) -> None:
    """Gives a whole preparation its name, unless another process was faster: others may have opened that one."""
    try:
        made.rename(directory)
    except OSError:
        if not _made_of(directory, stamp):  # of other files, or the rest of one that somebody has taken apart
            shutil.rmtree(directory, ignore_errors=True)
            made.rename(directory)


def open_inputs(directory: Path) -> RawInputs:
    """What `prepare_inputs` wrote."""
    about = json.loads((directory / "inputs.json").read_text(encoding="utf-8"))
    starts, present = (np.load(directory / f"{part}.npy") for part in ("starts", "present"))
    values = np.memmap(directory / "values.bin", about["dtype"], "r") if starts[-1] else np.zeros(0, about["dtype"])
    return RawInputs(values, starts, present, tuple(about["shape"]), about.get("failures", {}))


def _write(modality, preprocess, catalogue, media_root, limits, directory: Path, name: str, stamp: str) -> None:
    kind = modality.kind
    dtype = {"text": np.int32, "audio": np.float32}.get(kind, np.uint8)
    shape: tuple[int, ...] = ()
    starts, failures = [0, 0], {}
    made = _inputs(modality, unnormalised(preprocess), catalogue, media_root, limits)
    with (directory / "values.bin").open("wb") as file, contextlib.closing(made):
        for item, found in zip(catalogue["item"], made, strict=True):
            size = 0
            if isinstance(found, Missing):
                if found.failed:
                    failures[str(item)] = found.reason
            else:
                shape = found.shape[1:] if kind in ("audio", "video") else found.shape if kind == "image" else ()
                file.write(np.ascontiguousarray(found.astype(dtype)).tobytes())
                size = found.size
            starts.append(starts[-1] + size)
    present = np.diff(starts) > 0
    _refuse_gaps(name, failures, len(catalogue), int(present.sum()), limits.max_failure_share)
    np.save(directory / "starts.npy", np.asarray(starts, np.int64))
    np.save(directory / "present.npy", present)
    about = {"dtype": np.dtype(dtype).name, "shape": shape, "items": len(catalogue), "failures": failures}
    about |= {"files": stamp}
    (directory / "inputs.json").write_text(json.dumps(about), encoding="utf-8")


def _inputs(modality, preprocess, catalogue, media_root, limits) -> Generator[Input]:
    places = np.arange(len(catalogue))
    if isinstance(preprocess, TextPreprocessor):
        texts = TextInputs(modality, preprocess, catalogue)
        for start in range(0, len(places), _TEXTS_AT_ONCE):
            yield from texts(places[start : start + _TEXTS_AT_ONCE])
        return
    ahead = 4 * limits.decode_threads
    near = (ahead + limits.decode_threads) * max(1, limits.decode_processes)
    media = MediaInputs(modality, preprocess, catalogue, media_root, limits, near)
    yield from read_ahead(media, places, limits.decode_threads, ahead, limits.decode_processes)


def _refuse_gaps(name: str, failures: dict[str, str], items: int, present: int, share: float) -> None:
    if len(failures) > share * items:
        examples = "; ".join(f"{item}: {reason}" for item, reason in list(failures.items())[:_NAMED])
        raise StoreError(
            f"modality {name}: the media of {len(failures)} of {items} items are broken or missing, more than the "
            f"allowed share of {share:g} ({examples}). Mend them, or raise extraction.max_failure_share"
        )
    if items and not present and share < 1:
        raise StoreError(f"modality {name}: not one of {items} items has it: check its template or column")


def normalised(preprocess: Preprocessor, raw: np.ndarray) -> np.ndarray:
    """An item's input as the encoder takes it, of what `RawInputs` holds: exactly what the preprocessing gives."""
    if isinstance(preprocess, ImagePreprocessor):
        return preprocess.normalised(raw[0])
    if isinstance(preprocess, VideoPreprocessor):
        return preprocess.image.normalised(raw)
    assert isinstance(preprocess, TextPreprocessor | AudioPreprocessor)
    return np.asarray(raw)
