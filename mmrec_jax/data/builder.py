"""The tfds builder: splits of user histories as ArrayRecord files, and how they are read back."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np
import tensorflow_datasets as tfds

from mmrec_jax.data.ragged import Ragged

USERS_PER_RECORD = 4096


class UserHistories(tfds.core.GeneratorBasedBuilder):
    """Splits of ragged histories, a record for each block of consecutive users.

    Args:
        histories: split name -> the events of every user; needed to write, not to read.
        kwargs: of the tfds builder (`data_dir`).
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Blocks of users: lengths and item rows."}  # noqa: RUF012 (read by tfds)
    # Nothing is downloaded. Looking for checksums would need importlib_resources, which tfds does not depend
    # on.
    url_infos = None

    def __init__(self, *, histories: dict[str, Ragged] | None = None, **kwargs) -> None:
        self._histories = histories or {}
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Item rows of each user's events in time order, in blocks of users.",
            features=_features(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {name: self._generate_examples(histories) for name, histories in self._histories.items()}

    def _generate_examples(self, histories: Ragged) -> Iterator[tuple[int, dict]]:
        for first in range(0, len(histories), USERS_PER_RECORD):
            offsets = histories.offsets[first : first + USERS_PER_RECORD + 1]
            yield (
                first,
                {
                    "first_user": np.int64(first),
                    "lengths": np.diff(offsets).astype(np.int32),
                    "items": histories.values[offsets[0] : offsets[-1]],
                },
            )


@functools.cache
def _features() -> tfds.features.FeaturesDict:
    """The same ones for all builders: tfds keeps what it derives of each for ever."""
    return tfds.features.FeaturesDict(
        {
            "first_user": tfds.features.Scalar(np.int64),
            "lengths": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "items": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        }
    )


def write_histories(directory: Path, histories: dict[str, Ragged]) -> None:
    """Writes each split's histories below `directory`."""
    builder = UserHistories(data_dir=directory, histories=histories)
    with _quiet():
        builder.download_and_prepare()
    _forget_builders()


def read_histories(directory: Path) -> dict[str, Ragged]:
    """Reads what `write_histories` wrote, through grain, into flat arrays of 4 bytes an event.

    Raises:
        ValueError: a record cannot be read (tfds gives None for one that is damaged).
    """
    builder = UserHistories(data_dir=directory)
    read = {name: _read_split(builder, name) for name in builder.info.splits}
    _forget_builders()
    return read


def _read_split(builder: UserHistories, name: str) -> Ragged:
    records = list(grain.MapDataset.source(builder.as_data_source(split=name)))
    if any(value is None for record in records for value in record.values()):
        raise ValueError(f"a record of the {name} split cannot be read")
    records.sort(key=lambda record: int(record["first_user"]))
    lengths = np.concatenate([record["lengths"] for record in records])
    return Ragged.of_lengths(np.concatenate([record["items"] for record in records]), lengths)


def _forget_builders() -> None:
    """Empties the cache of tfds' property `info`, which keeps every builder, with all that it wrote, for ever."""
    clear = getattr(tfds.core.DatasetBuilder.info.fget, "cache_clear", None)
    if clear is not None:
        clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps tfds from drawing progress bars and announcing what it does."""
    drawn = tfds.core.utils.tqdm_utils._active
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if drawn:
            tfds.enable_progress_bar()
