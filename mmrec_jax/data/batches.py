"""Training batches: shuffled anew each epoch, shared out among processes, resumed exactly."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from mmrec_jax.data.balance import dealt, expected_distinct
from mmrec_jax.data.prepared import PreparedData
from mmrec_jax.data.rows import Chosen, Rows, distinct_counts, step_counts, training_rows
from mmrec_jax.errors import CheckpointError, ConfigError, EmptySplitError
from mmrec_jax.share import WHOLE, Share

if TYPE_CHECKING:
    from mmrec_jax.types import SequenceBatch

_READ_AHEAD = 16
_STEPS = 2**31  # the stream is endless
_TRIAL_STEPS = 256
_MOST_STEPS_TRIED = 10_000  # about two seconds
_GROUP_STEPS = 16
"""Steps of each group are padded up to a multiple of this."""
_SIZE_QUANTILES = (0.5, 1.0)
"""Of what the steps need: each size is a program to compile and to keep, and what it exceeds the need by is wasted."""


class TrainingStream:
    """An endless iterator of `SequenceBatch`es with numpy leaves, read ahead by a grain thread.

    Every epoch shows each row once, in an order that depends on the seed and the epoch only, and whose steps need about
    as much room as one another (`balance.dealt`). A step takes batch_size x shard_count rows of that order, and process
    i gets rows i, i + shard_count, ... of them: no row is shown twice or lost, and all processes have the same number
    of batches. Where rows run out at the end of an epoch, a batch is filled up with rows of padding whose user is -1.

    For a step over several devices, the rows of a batch make as many equal `groups`, and its steps too: a group's steps
    lie in its part of the axis `step`, by their place in the group's own rows.

    A process that has the devices of some groups only can make the rows of these alone (`own_groups`); what is there of
    `positions`, `steps` and `users` is then `share.OwnRows`. The items of a batch are those of all its rows, and each
    process has them all.

    Where some groups have catalogue rows that others have not, the distinct items of so many rows lie in one part of
    the axis `distinct`, and those of the next rows in the next; 0 fills each part up.

    The axes `distinct` and `step` have one of few pairs of sizes (`sizes`), the same on all processes in a step.
    Streams over other rows of the same width can share them, and what was compiled, if the largest holds any batch.

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
        size_multiple: int,
        fingerprint: str,
        epochs: int,
        groups: int = 1,
        owners: int = 1,
        owner_rows: int = 0,
        own_groups: tuple[int, ...] | None = None,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.rows = rows
        self._share = Share(groups, own_groups)
        self._groups, self._owners, self._owner_rows = groups, owners, owner_rows
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
            "order": "balanced",
        }
        self._seed = seed
        self._distinct = expected_distinct(rows, num_items, self._rows_per_step)
        self._order = functools.lru_cache(maxsize=2)(self._epoch_order)
        self._size_multiple = size_multiple
        self._sizes = np.asarray(sizes, np.int64) if sizes else self._choose_sizes(num_items)
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

    def sizes(self) -> list[tuple[int, int]]:
        """The sizes of the axes `distinct` and `step`, ascending: of all batches that there can be or, where `epochs`
        is known and short enough to try (10,000 batches), of those that occur in them."""
        return [(int(distinct), int(steps)) for distinct, steps in self._sizes]

    def warmup_batches(self) -> list[SequenceBatch]:
        """A batch of padding of each of the `sizes`, to compile every shape with."""
        nothing = self.rows.chosen(np.zeros(0, np.int64))
        return [self._assemble(nothing, sizes, WHOLE) for sizes in self.sizes()]

    def sample(self, most: int) -> tuple[Iterator[SequenceBatch], bool]:
        """Batches as they will come, evenly spread and at most so many, and whether they are all that there can be.

        The position in the stream stays as it is.
        """
        known = self._epochs * self.batches_per_epoch
        steps = np.unique(np.linspace(0, (known or self.batches_per_epoch) - 1, most).round().astype(np.int64))
        return (self._batch(int(step)) for step in steps), 0 < known <= most

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

    def _epoch_order(self, epoch: int) -> Int64[np.ndarray, " row"]:
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self.rows))
        return dealt(order, self._distinct, self.rows.lengths, self._rows_per_step, rng)

    def _chosen(self, step: int) -> Int64[np.ndarray, " chosen"]:
        """The rows of a step, for all processes."""
        epoch, index = divmod(step, self.batches_per_epoch)
        return self._order(epoch)[index * self._rows_per_step : (index + 1) * self._rows_per_step]

    def _needed(self, chosen: Chosen) -> tuple[int, int]:
        """Sizes of `distinct` and `step` that hold every process's share of these rows."""
        shards, groups = self._shard_count, self._groups
        distinct = len(chosen.items) if shards == 1 else int(distinct_counts(chosen.events, shards).max())
        if self._owner_rows:
            distinct = self._owners * int(self._by_owner(chosen.items).max())
        if groups > 1:
            return distinct, groups * int(self._grouped(chosen.inputs).sum(axis=1).max())
        return distinct, int(step_counts(chosen.inputs, shards).max())

    def _by_owner(self, items: Int32[np.ndarray, " distinct"]) -> Int64[np.ndarray, " group"]:
        """How many of the items each owner has."""
        return np.bincount(items // self._owner_rows, minlength=self._owners)

    def _places(self, items: Int32[np.ndarray, " distinct"], size: int) -> Int64[np.ndarray, " distinct"]:
        """Where ascending items lie on an axis `distinct` of this size."""
        places = np.arange(len(items))
        if not self._owner_rows:
            return places
        owners = items // self._owner_rows
        return places - np.searchsorted(owners, np.arange(self._owners))[owners] + owners * (size // self._owners)

    def _grouped(self, inputs: Bool[np.ndarray, "rows length"]) -> Bool[np.ndarray, "group slot"]:
        """The inputs of each group's rows, of a batch that may have fewer rows than others."""
        every = np.zeros((self._batch_size, inputs.shape[1]), bool)
        every[: len(inputs)] = inputs
        return every.reshape(self._groups, -1)

    def _fitting(self, needed: tuple[int, int]) -> tuple[int, int]:
        """The first of the sizes that holds as much; one of its own for a batch after the epochs that were foreseen."""
        found = self._sizes[(self._sizes >= needed).all(axis=1)]
        distinct, steps = found[0] if len(found) else self._rounded(needed)
        return int(distinct), int(steps)

    def _rounded(self, sizes: Any) -> Int64[np.ndarray, "*sizes 2"]:
        """Sizes rounded up to the multiple."""
        # A group's steps are padded by themselves, and little: with many groups each has few.
        steps = self._size_multiple if self._groups == 1 else self._groups * min(self._size_multiple, _GROUP_STEPS)
        multiple = np.asarray([self._size_multiple, steps])
        return (np.ceil(np.asarray(sizes) / multiple) * multiple).astype(np.int64)

    def _batch(self, step: int) -> SequenceBatch:
        rows = self._chosen(step)
        chosen = self.rows.chosen(rows)
        sizes = self._fitting(self._needed(chosen))
        if self._shard_count > 1:
            chosen = self.rows.chosen(rows[self._shard_index :: self._shard_count])
        return self._assemble(chosen, sizes, self._share)

    def _assemble(self, chosen: Chosen, sizes: tuple[int, int], share: Share) -> SequenceBatch:
        """A batch of these rows, filled up to `batch_size` rows and the sizes of `distinct` and `step`."""
        from mmrec_jax.types import SequenceBatch  # imports jax

        distinct, steps = sizes
        places = self._places(chosen.items, distinct)
        counts, items = np.zeros((2, distinct), np.int32)
        items[places], counts[places] = chosen.items, chosen.counts

        def positions(part: slice) -> np.ndarray:
            found = places[np.searchsorted(chosen.items, chosen.events[part])].astype(np.int32)
            return _filled(found, part.stop - part.start, 0)

        def users(part: slice) -> np.ndarray:
            return _filled(chosen.users[part], part.stop - part.start, -1)

        leaves: dict[str, Any] = {
            "items": items,
            "counts": counts,
            "positions": share.of(self._batch_size, positions),
            "steps": share.of(steps, lambda part: self._steps(chosen.inputs, part, steps)),
            "users": share.of(self._batch_size, users),
        }
        return SequenceBatch(**leaves)

    def _steps(self, inputs: Bool[np.ndarray, "rows length"], part: slice, size: int) -> Int32[np.ndarray, " step"]:
        """The range of `SequenceBatch.steps`, of this size in all, which has an equal part for each group."""
        each = size // self._groups
        groups = range(part.start // each, part.stop // each)
        slots = self._batch_size * (self.rows.width - 1) // self._groups
        found = self._grouped(inputs) if self._groups > 1 else inputs.reshape(1, -1)
        return np.concatenate([_filled(np.flatnonzero(found[group]), each, slots) for group in groups])

    def _choose_sizes(self, num_items: int) -> Int64[np.ndarray, "sizes 2"]:
        """Few pairs of sizes that fit most batches closely, found by trying; the last one is never exceeded."""
        known = self._epochs * self.batches_per_epoch
        tried = known if 0 < known <= _MOST_STEPS_TRIED else min(_TRIAL_STEPS, self.batches_per_epoch)
        needed = np.asarray([self._needed(self.rows.chosen(self._chosen(step))) for step in range(tried)])
        fitting = np.quantile(needed, _SIZE_QUANTILES, axis=0)
        if tried != known:  # others may need more: leave some room, and have one that holds whatever the data can give
            fitting[-1] += (fitting[-1] - fitting[0]) / 2
            widest = np.sort(self.rows.stops - self.rows.starts)[-self._batch_size :]
            most = (widest - 1).sum() if self._groups == 1 else self._batch_size * (self.rows.width - 1)
            limit = min(num_items, widest.sum()) + 1, most
            if self._owner_rows:
                # That all items of a batch are one owner's cannot be planned for: twice what was needed is.
                limit = 2 * needed[:, 0].max(), most
            fitting = np.vstack([np.minimum(fitting, limit), [limit]])
        sizes = np.unique(self._rounded(fitting), axis=0)
        if tried == known:
            sizes = sizes[np.unique(np.argmax((sizes >= needed[:, None]).all(axis=2), axis=1))]
        return sizes


def training_batches(
    prepared: PreparedData,
    *,
    batch_size: int,
    length: int,
    window: str = "last",
    seed: int = 0,
    shard_index: int = 0,
    shard_count: int = 1,
    size_multiple: int = 16,
    epochs: int = 0,
    groups: int = 1,
    owners: int = 1,
    owner_rows: int = 0,
    own_groups: tuple[int, ...] | None = None,
) -> TrainingStream:
    """Batches of training histories with their targets.

    Args:
        prepared: the data.
        batch_size: rows of a batch of this process; a step takes batch_size x shard_count rows.
        length: inputs a row; `positions` has length + 1 columns.
        window: "last" or "chunks", see `rows.training_rows`.
        seed: of the order.
        shard_index, shard_count: which share of each step this process gets.
        size_multiple: the axes `distinct` and `step` are padded up to a multiple of this.
        epochs: how many will be asked for at most, if that is known: `sizes` then leaves out what does not occur
            in them. 0 = unknown.
        groups: equal parts of a batch's rows, see `TrainingStream`; must divide `batch_size`, and be 1 for several
            shards.
        owners: in how many parts the catalogue lies, each with some of the groups; a divisor of `groups`.
        owner_rows: rows of each part, in their order: a batch's items are then arranged by who has them; 0 for no such
            arrangement.
        own_groups: those whose rows this process makes; None for all.

    Raises:
        EmptySplitError: no user has 2 training events.
        ConfigError: a size is not positive, or the shard is not one of shard_count.
    """
    if groups < 1 or batch_size % groups or (groups > 1 and (shard_count > 1 or size_multiple % groups)):
        raise ConfigError(
            f"groups={groups} must divide batch_size={batch_size} and size_multiple={size_multiple}, and be 1 where "
            f"shard_count={shard_count} is not."
        )
    if min(batch_size, shard_count, size_multiple) < 1 or not 0 <= shard_index < shard_count or seed < 0:
        raise ConfigError(
            f"batch_size={batch_size}, shard_count={shard_count} and size_multiple={size_multiple} "
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
        size_multiple=size_multiple,
        fingerprint=prepared.fingerprint,
        epochs=epochs,
        groups=groups,
        owners=owners,
        owner_rows=owner_rows,
        own_groups=own_groups,
    )


def _filled(array: Int[np.ndarray, "part ..."], size: int, filler: int) -> Int32[np.ndarray, "{size} ..."]:
    """The array with `filler` below it up to `size` rows."""
    whole = np.full((size, *array.shape[1:]), filler, np.int32)
    whole[: len(array)] = array
    return whole
