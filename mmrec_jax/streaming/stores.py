"""The store of a stream that forgets: written anew, without forgotten items, when they are a good part of it.

    stores/
      000002/     the store as it was written last, and the one before
    store         a link to the newest

The link is moved all at once, and whoever has opened a store stays with it (`HiddenStateStore.open`): so the one before
is left until the next is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from mmrec_jax.files import sync, sync_all

FOLDER, CURRENT = "stores", "store"


def begin(workdir: Path) -> Path:
    """Makes sure that the workdir has a link to the newest store, which is empty at first; returns it. A store that is
    no link yet becomes the first."""
    folder, link = workdir / FOLDER, workdir / CURRENT
    if link.is_symlink():
        return link
    folder.mkdir(parents=True, exist_ok=True)
    if link.exists():
        link.rename(folder / _name(len(_all(folder)) + 1))
    elif not _all(folder):  # else a kill came before the link was made
        (folder / _name(1)).mkdir()
    _point(workdir, _all(folder)[-1])
    return link


def compact(workdir: Path, needed: Collection[str], share: float) -> tuple[int, int] | None:
    """Writes the store anew if more than a share of its items is not needed.

    Args:
        workdir: of a stream, see `begin`.
        needed: ids of the items that stay.
        share: of the store's items.

    Returns:
        How many items it had, and has; None where it stays as it is, or the workdir has none of its own.
    """
    if not (workdir / CURRENT).is_symlink():
        return None
    from mmrec_jax.store import HiddenStateStore
    from mmrec_jax.store.compact import copied

    store = HiddenStateStore.open(workdir / CURRENT)
    kept = set(store.item_ids) & set(needed)
    if len(kept) >= (1 - share) * len(store.item_ids):
        return None
    folder = workdir / FOLDER
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover)
    name = _name(int(Path(store.location).name) + 1)
    unfinished, finished = folder / f".{name}", folder / name
    copied(store, unfinished, kept)
    sync_all(unfinished)
    if finished.exists():  # of a run that was killed before the link was moved
        shutil.rmtree(finished)
    unfinished.rename(finished)
    _point(workdir, finished)
    for older in _all(folder)[:-2]:
        shutil.rmtree(older)
    return len(store.item_ids), len(kept)


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*"))


def _name(number: int) -> str:
    return f"{number:06d}"


def _point(workdir: Path, store: Path) -> None:
    sync(store.parent)
    link = workdir / f".{CURRENT}"
    link.unlink(missing_ok=True)
    link.symlink_to(f"{FOLDER}/{store.name}")
    os.replace(link, workdir / CURRENT)
    sync(workdir)
