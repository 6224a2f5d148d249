"""States of a catalogue from the store into memory: all rows of it, or those that devices of this process have."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Int, Num

from mmrec_jax.shards import Shards
from mmrec_jax.store.arrays import chunk_rows, open_array, store_errors

if TYPE_CHECKING:
    from mmrec_jax.store.store import HiddenStateStore

_READ_AHEAD = 4  # chunks in flight


def load(
    store: HiddenStateStore,
    name: str,
    kind: str,
    rows: Int[np.ndarray, " item"],
    layers: Sequence[int],
    shards: Shards | None,
) -> tuple[Num[jax.Array, "row ..."], ...]:
    """One array a layer, read chunk by chunk into what the devices use (on CPU without a copy); row 0 is zeros.

    Args:
        store: to read from.
        name: of the modality.
        kind: `values` or `scales`.
        rows: of the store, of each item.
        layers: places of the layers in the store.
        shards: of a mesh; None for one device.

    Raises:
        StoreError: files are damaged, or states are not finite.
    """
    source = open_array(store.files, f"{name}/{kind}")
    count = len(rows) + 1
    parts = (slice(0, count),) if shards is None else shards.own_rows(count)
    targets = [
        [_aligned_zeros((part.stop - part.start, *source.shape[2:]), source.dtype.numpy_dtype) for part in parts]
        for _ in layers
    ]
    # Store row -> row of the catalogue; 0 for store rows that no part has.
    places = np.zeros(source.shape[0], np.int64)
    for part in parts:
        own = np.arange(max(part.start, 1), min(part.stop, count))
        places[rows[own - 1]] = own
    wanted = _wanted(np.flatnonzero(places), chunk_rows(source))
    reads = [source[start:stop].read for start, stop in wanted]
    ahead = deque(read() for read in reads[:_READ_AHEAD])
    for number, (start, stop) in enumerate(wanted):
        with store_errors(f"{kind} of modality {name} cannot be read from {store.location}"):
            chunk = ahead.popleft().result()
        ahead.extend(read() for read in reads[number + _READ_AHEAD : number + _READ_AHEAD + 1])
        put = places[start:stop]
        every = np.flatnonzero(put)
        store.require_finite(name, chunk[every], start + every)
        for position, part in enumerate(parts):
            chosen = every[(put[every] >= part.start) & (put[every] < part.stop)]
            for target, layer in zip(targets, layers, strict=True):
                target[position][put[chosen] - part.start] = chunk[chosen, layer]
    if shards is None:
        return tuple(jax.device_put(target, may_alias=True) for (target,) in targets)
    return tuple(shards.of_own_rows(count, target) for target in targets)


def _wanted(rows: Int[np.ndarray, " wanted"], chunk: int) -> list[tuple[int, int]]:
    """For each file that has some of these ascending store rows, the first and one past the last of them."""
    firsts = np.flatnonzero(np.diff(rows // chunk, prepend=-1))
    return [(int(part[0]), int(part[-1]) + 1) for part in np.split(rows, firsts[1:]) if len(part)]


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros on a page boundary, which JAX on CPU takes over as they are instead of copying."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.zeros(size + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    return raw[start : start + size].view(dtype).reshape(shape)
