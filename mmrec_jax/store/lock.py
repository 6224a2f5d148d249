"""One process at a time that changes a store."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path

from mmrec_jax.store.arrays import without_links

CHANGE, EXTRACTION = ".lock", ".extraction_lock"


@contextlib.contextmanager
def alone(location: str | Path, name: str = CHANGE, waits: Callable[[], None] | None = None) -> Iterator[None]:
    """Waits until no other process holds a lock of a local store, which the operating system takes back however the
    process ends.

    URLs, and file systems without locks or that are only read, have none: at a URL, lists of items and of modalities
    are replaced only if nobody else has done so meanwhile, but two extractions at a time encode the same items twice.

    Args:
        location: of the store.
        name: `CHANGE` for its lists of items and modalities, held for a moment; `EXTRACTION` for as long as one runs.
        waits: called where another process has the lock.
    """
    with contextlib.ExitStack() as held:
        place = without_links(location)
        if "://" not in place:
            with contextlib.suppress(OSError):
                Path(place).mkdir(parents=True, exist_ok=True)
                _lock(held.enter_context((Path(place) / name).open("a")).fileno(), waits)
        yield


def _lock(handle: int, waits: Callable[[], None] | None) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waits:
            waits()
        fcntl.flock(handle, fcntl.LOCK_EX)
