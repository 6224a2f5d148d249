"""A store without items that are not needed any more."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from mmrec_jax.store.arrays import chunk_rows, open_array, store_errors
from mmrec_jax.store.store import HiddenStateStore


def copied(store: HiddenStateStore, location: str | Path, needed: Collection[str]) -> HiddenStateStore:
    """Copies some items of a store, as they are stored, to another location; one file of the store's is in memory at a
    time.

    Args:
        store: it is only read.
        location: where there is no store.
        needed: ids of the items; those that the store lacks are passed over.

    Raises:
        StoreError: it cannot be read or written.
    """
    wanted = set(needed)
    kept = [item for item in store.item_ids if item in wanted]
    rows, made = store.rows(kept), HiddenStateStore.create(location, kept)
    for name, info in store.modalities.items():
        made.add_modality(name, info)
        # An item counts as there once its status does.
        for kind in info.arrays:
            source, target = (open_array(each.files, f"{name}/{kind}") for each in (store, made))
            with store_errors(f"{kind} of modality {name} cannot be copied from {store.location} to {made.location}"):
                for start in range(0, len(rows), step := chunk_rows(target)):
                    part = rows[start : start + step]
                    held = source[part.min() : part.max() + 1].read().result()[part - part.min()]
                    target[start : start + len(part)].write(np.ascontiguousarray(held)).result()
    return made
