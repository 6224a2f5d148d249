"""Training batches with the raw inputs of their items, in shapes that are known before the first step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mmrec_jax.data.batches import TrainingStream
from mmrec_jax.errors import ConfigError
from mmrec_jax.live.catalogue import LiveBackbones, LiveCatalogue
from mmrec_jax.live.parts import Layout, Sizes
from mmrec_jax.share import WHOLE, Share
from mmrec_jax.types import SequenceBatch

_TRIED = 2000  # batches that the sizes of parts are taken from, about two seconds
_ROOM = 1.15  # of what those need, where others may come


class LiveStream:
    """A stream whose batches have `media`: for each size of the inner stream's batches, parts of one size.

    A batch that does not fit (where not all could be tried) gets parts of its own size; the step is then compiled
    for it, and says so.
    """

    def __init__(
        self, stream: TrainingStream, backbones: LiveBackbones, catalogue: LiveCatalogue, share: Share = WHOLE
    ):
        """Tries the stream's batches; its position stays as it is. The rows of each part are split over the groups of
        `share`, of which this process makes its own: it reads the media of no others.

        Raises:
            ConfigError: no item has one of the modalities.
        """
        lacking = [name for name in backbones.backbones if not catalogue.inputs[name].present.any()]
        if lacking:
            raise ConfigError(f"methods.{lacking[0]}: no item has this modality: take it out of the config.")
        self._stream, self._share = stream, share
        self._layouts: dict[str, Layout] = {
            name: part.layout(catalogue.inputs[name], share.groups) for name, part in backbones.backbones.items()
        }
        self._most, self._largest = self._needs()

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches that make one epoch."""
        return self._stream.batches_per_epoch

    def __next__(self) -> SequenceBatch:
        """The next batch with its inputs."""
        return self._with_media(next(self._stream), self._share)

    def get_state(self) -> dict:
        """The position of the inner stream."""
        return self._stream.get_state()

    def set_state(self, state: dict) -> None:
        """Goes to a position."""
        self._stream.set_state(state)

    def warmup_batches(self) -> list[SequenceBatch]:
        """A batch of padding of each size."""
        return [self._with_media(batch, WHOLE) for batch in self._stream.warmup_batches()]

    def close(self) -> None:
        """Ends the reading ahead."""
        self._stream.close()

    def _needs(self) -> tuple[dict[str, dict[tuple[int, int], Sizes]], dict[str, Sizes]]:
        """Modality -> size of a batch -> what such batches need at most; modality -> what any batch needs at most."""
        sizes = self._stream.sizes()
        found: dict[str, dict] = {name: {size: [] for size in sizes} for name in self._layouts}
        batches, every = self._stream.sample(_TRIED)
        for batch in batches:
            for name, layout in self._layouts.items():
                found[name][_size(batch)].append(layout.needed(_rows(batch)))
        room = 1.0 if every else _ROOM

        def most(tried: list[Sizes]) -> Sizes:
            return tuple(int(np.ceil(room * count)) for count in np.max(tried, axis=0))

        largest = {name: most([need for tried in of.values() for need in tried]) for name, of in found.items()}
        needs = {
            name: {size: most(tried) if tried else largest[name] for size, tried in of.items()}
            for name, of in found.items()
        }
        return needs, largest

    def _with_media(self, batch: SequenceBatch, share: Share) -> SequenceBatch:
        rows, media = _rows(batch), {}
        for name, layout in self._layouts.items():
            # After the epochs that were foreseen, a batch may have a size of its own.
            most, needed = self._most[name].get(_size(batch), self._largest[name]), layout.needed(rows)
            if any(np.greater(needed, most)):
                most = tuple(np.maximum(needed, most).tolist())
            media[name] = layout.batch(rows, layout.sizes(most), share)
        return replace(batch, media=media)


def _size(batch: SequenceBatch) -> tuple[int, int]:
    return batch.items.shape[0], batch.steps.shape[0]


def _rows(batch: SequenceBatch) -> np.ndarray:
    return np.asarray(batch.items)
