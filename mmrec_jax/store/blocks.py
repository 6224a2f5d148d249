"""The work of an extraction in blocks at fixed places of the store, and each process's share of them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int


def blocks_of(
    rows: Int[np.ndarray, " item"], waiting: Bool[np.ndarray, " item"], size: int, chunk: int
) -> list[Int[np.ndarray, " some"]]:
    """Positions of the waiting items, in blocks that are encoded and written together.

    Blocks lie at fixed rows of the store, whatever is finished and however many processes there are, so that a
    resumed run makes the same batches. None reaches over the end of a file of `status`, so that it is finished as a
    whole or not at all.

    Args:
        rows: of the store, for each item.
        waiting: items to go through.
        size: rows in a block.
        chunk: rows in one file of `status`.
    """
    places = np.flatnonzero(waiting)
    places = places[np.argsort(rows[places], kind="stable")]
    file, within = np.divmod(rows[places], chunk)
    block = file * -(-chunk // size) + within // size
    return np.split(places, np.flatnonzero(np.diff(block)) + 1) if len(places) else []


def share_of(blocks: list, index: int, count: int) -> list:
    """The blocks of process `index` of `count`: neighbours, so that few files are written by two processes."""
    return blocks[len(blocks) * index // count : len(blocks) * (index + 1) // count]
