"""Inputs read and decoded ahead of the encoder, by grain, in threads or processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import grain
import numpy as np
from absl import flags

T = TypeVar("T")


def read_ahead(
    read: Callable[[Any], T], pieces: Sequence | np.ndarray, threads: int, ahead: int, processes: int = 0
) -> Generator[T]:
    """What `read` makes of each piece, in order.

    Args:
        read: can be pickled where `processes` is not 0.
        pieces: what is read.
        threads: that read at a time, in each process.
        ahead: how many pieces are read before they are asked for.
        processes: that read; 0 reads in this one. They touch no device.
    """
    if not len(pieces):
        return
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=-(-ahead // max(1, processes)))
    dataset = grain.MapDataset.source(pieces).map(read).to_iter_dataset(options)
    if processes:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain's workers look at flags that a library's user may never parse
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=processes))
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()
