"""Training batches: shuffled anew each epoch, shared out among processes, resumed exactly."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, Int32, Int64

from mmrec_jax.data.prepared import PreparedData
from mmrec_jax.data.rows import Rows, distinct_counts, training_rows
from mmrec_jax.errors import CheckpointError, ConfigError, EmptySplitError

if TYPE_CHECKING:
    from mmrec_jax.types import SequenceBatch

_READ_AHEAD = 16
_STEPS = 2**31  # the stream is endless
_TRIAL_STEPS = 256
_MOST_STEPS_TRIED = 20_000  # about a second
_SIZE_QUANTILES = (0.25, 0.6, 0.9, 1.0)


class TrainingStream:
    """An endless iterator of `SequenceBatch`es with numpy leaves, read ahead by a grain thread.

    Every epoch shows each row once, in an order that depends on the seed and the epoch only. A step takes
    batch_size x shard_count rows of that order, and process i gets rows i, i + shard_count, ... of them: no
    row is shown twice or lost, and all processes have the same number of batches. Where rows run out at the
    end of an epoch, a batch is filled up with rows of padding whose user is -1.

    The axis `distinct` has one of few sizes (`distinct_sizes`), the same on all processes in the same step.

    Attributes:
        rows: what an epoch consists of.
        batches_per_epoch: number of batches after which every row was shown once.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        num_items: int,
        batch_size: int,
        seed: int,
        shard_index: int,
        shard_count: int,
        distinct_multiple: int,
        fingerprint: str,
        epochs: int,
    ) -> None:
        self.rows = rows
        self._batch_size, self._epochs = batch_size, epochs
        self._shard_index, self._shard_count = shard_index, shard_count
        self._rows_per_step = batch_size * shard_count
        self.batches_per_epoch = -(-len(rows) // self._rows_per_step)
        self._made_of = {
            "fingerprint": fingerprint,
            "seed": seed,
            "rows": len(rows),
            "width": rows.width,
            "rows_per_step": self._rows_per_step,
        }
        self._order = functools.lru_cache(maxsize=2)(functools.partial(_epoch_order, len(rows), seed))
        self._sizes = self._choose_sizes(num_items, distinct_multiple)
        self._iterator = self._start(0)

    def __iter__(self) -> Iterator[SequenceBatch]:
        return self

    def __next__(self) -> SequenceBatch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch handed out, and what the stream is made of; JSON-able."""
        return {"step": self._iterator.get_state()["next_index"], "made_of": self._made_of}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position: the batches that follow are exactly those that followed `get_state`.

        The number of processes may have changed as long as batch_size x shard_count is the same.

        Raises:
            CheckpointError: the state is of a stream over other data, or with other settings.
        """
        differences = [
            f"{key} was {state['made_of'].get(key)!r} and is {value!r}"
            for key, value in self._made_of.items()
            if state["made_of"].get(key) != value
        ]
        if differences:
            raise CheckpointError(
                f"the saved position is of other training batches: {'; '.join(differences)}. Resume with the "
                "data and settings of the run, or start a new one."
            )
        self._iterator.close()
        self._iterator = self._start(state["step"])

    @functools.cached_property
    def _occurring(self) -> list[int]:
        if not 0 < self._epochs * self.batches_per_epoch <= _MOST_STEPS_TRIED:
            return self._sizes.tolist()
        steps = range(self._epochs * self.batches_per_epoch)
        return sorted({self._size(self.rows.events(self._chosen(step))) for step in steps})

    def distinct_sizes(self) -> list[int]:
        """The sizes of the axis `distinct`, ascending: of all batches that there can be or, where `epochs` is
        known and short enough to try (20,000 batches), of those that occur in them."""
        return list(self._occurring)

    def warmup_batches(self) -> list[SequenceBatch]:
        """A batch of padding of each size in `distinct_sizes`, to compile every shape with."""
        width = self.rows.width
        nothing = np.zeros((0, width), np.int32), np.zeros(0, np.int32)
        return [self._assemble(*nothing, size) for size in self.distinct_sizes()]

    def close(self) -> None:
        """Ends the reading ahead."""
        self._iterator.close()

    def _start(self, step: int) -> Any:
        import grain  # takes half a second, which `--help` need not wait for

        # The order is drawn for a whole epoch at once: `MapDataset.shuffle` asks for each row by itself,
        # which costs ten times as much a batch, and orders of neighbouring seeds repeat each other there.
        steps = grain.MapDataset.range(_STEPS).map(self._batch)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_READ_AHEAD)
        iterator = iter(steps.to_iter_dataset(options))
        iterator.set_state({"next_index": step})
        return iterator

    def _chosen(self, step: int) -> Int64[np.ndarray, " chosen"]:
        """The rows of a step, for all processes."""
        epoch, index = divmod(step, self.batches_per_epoch)
        return self._order(epoch)[index * self._rows_per_step : (index + 1) * self._rows_per_step]

    def _size(self, events: np.ndarray) -> int:
        """The smallest of the sizes that holds every process's share of these events."""
        needed = distinct_counts(events, self._shard_count).max()
        return int(self._sizes[np.searchsorted(self._sizes, needed)])

    def _batch(self, step: int) -> SequenceBatch:
        chosen = self._chosen(step)
        events = self.rows.events(chosen)
        share = slice(self._shard_index, None, self._shard_count)
        return self._assemble(events[share], self.rows.users[chosen[share]], self._size(events))

    def _assemble(
        self, events: Int32[np.ndarray, "rows width"], users: Int32[np.ndarray, " rows"], size: int
    ) -> SequenceBatch:
        """A batch of these rows, filled up to `batch_size` rows and `size` distinct items."""
        from mmrec_jax.types import SequenceBatch  # imports jax

        # The leading 0 makes entry 0 the padding even where no row has any.
        found, positions, counts = np.unique(np.append(0, events), return_inverse=True, return_counts=True)
        counts[0] = 0
        items, occurrences = _filled(found, size, 0), _filled(counts, size, 0)
        table = _filled(positions[1:].reshape(events.shape), self._batch_size, 0)
        fillers = _filled(users, self._batch_size, -1)
        return SequenceBatch(items, occurrences, table, fillers)  # type: ignore[arg-type]  # numpy leaves

    def _choose_sizes(self, num_items: int, multiple: int) -> Int64[np.ndarray, " sizes"]:
        """Few sizes that fit most batches closely, found by trying, and one that no batch can exceed."""
        steps = range(min(_TRIAL_STEPS, max(1, len(self.rows) // self._rows_per_step)))
        needed = [distinct_counts(self.rows.events(self._chosen(step)), self._shard_count).max() for step in steps]
        fitting = np.quantile(needed, _SIZE_QUANTILES)
        fitting[-1] += (fitting[-1] - fitting[0]) / 2
        widest = np.sort(self.rows.stops - self.rows.starts)[-self._batch_size :].sum()
        limit = min(num_items, widest) + 1
        sizes = np.ceil(np.append(np.minimum(fitting, limit), limit) / multiple) * multiple
        return np.unique(sizes.astype(np.int64))


def training_batches(
    prepared: PreparedData,
    *,
    batch_size: int,
    length: int,
    window: str = "last",
    seed: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    distinct_multiple: int = 32,
    epochs: int = 0,
) -> TrainingStream:
    """Batches of training histories with their targets.

    Args:
        prepared: the data.
        batch_size: rows of a batch of this process; a step takes batch_size x shard_count rows.
        length: inputs a row; `positions` has length + 1 columns.
        window: "last" or "chunks", see `rows.training_rows`.
        seed: of the order.
        shard_index, shard_count: which share of each step this process gets.
        distinct_multiple: the axis `distinct` is padded up to a multiple of this.
        epochs: how many will be asked for at most, if that is known: `distinct_sizes` then leaves out what
            does not occur in them. 0 = unknown.

    Raises:
        EmptySplitError: no user has 2 training events.
        ConfigError: a size is not positive, or the shard is not one of shard_count.
    """
    if min(batch_size, shard_count, distinct_multiple) < 1 or not 0 <= shard_index < shard_count or seed < 0:
        raise ConfigError(
            f"batch_size={batch_size}, shard_count={shard_count} and distinct_multiple={distinct_multiple} "
            f"must be positive, shard_index={shard_index} in 0..shard_count - 1, seed={seed} not negative."
        )
    rows = training_rows(prepared, length, window)
    if not len(rows):
        raise EmptySplitError(
            f"no user of {prepared.directory} has 2 training events, so there is nothing to learn from: keep "
            "longer histories (data.max_length), or hold out less."
        )
    return TrainingStream(
        rows,
        num_items=prepared.num_items,
        batch_size=batch_size,
        seed=seed,
        shard_index=shard_index,
        shard_count=shard_count,
        distinct_multiple=distinct_multiple,
        fingerprint=prepared.fingerprint,
        epochs=epochs,
    )


def _epoch_order(rows: int, seed: int, epoch: int) -> Int64[np.ndarray, " {rows}"]:
    return np.random.default_rng([seed, epoch]).permutation(rows)


def _filled(array: Int[np.ndarray, "part ..."], size: int, filler: int) -> Int32[np.ndarray, "{size} ..."]:
    """The array with `filler` below it up to `size` rows."""
    whole = np.full((size, *array.shape[1:]), filler, np.int32)
    whole[: len(array)] = array
    return whole
