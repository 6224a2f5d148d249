"""Places of files, and small files that are there as a whole or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mmrec_jax.errors import ConfigError


def check_local(name: str, place: str | Path | None) -> None:
    """Whether a place can be one of this machine's file systems; "" and None name none.

    Raises:
        ConfigError: it is a URL, which would be taken for the name of a folder here.
    """
    if place and re.match(r"[A-Za-z][\w+.-]*:/", str(place)):
        raise ConfigError(
            f"{name}={place}: a URL cannot be used here, only a path. Mount a disk that all hosts see (NFS, Filestore) "
            "and name a folder of it; only the hidden states may lie in a bucket (store=gs://bucket/folder)."
        )


def write_whole(path: Path, text: str) -> None:
    """Writes a file all at once: whoever is killed while writing, or loses power, leaves the old one, or none."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        sync(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or a directory's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Waits until a folder is on the disk with all that it holds, so that a name given to it after that never leads to
    less. Links are not followed."""
    for path in sorted(folder.rglob("*")):
        if not path.is_symlink():
            sync(path)
    sync(folder)
