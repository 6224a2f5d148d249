"""What a prepared directory was made from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmrec_jax.data.config import DataConfig

FORMAT = 1  # of the prepared directory: raise it when the same source and config give other files


def contents(config: DataConfig, files: list[Path]) -> dict[str, Any]:
    """What the prepared data depends on: each file's sha256, and the config but for the source's place."""
    settings = {key: value for key, value in asdict(config).items() if key != "source"}
    return {"format": FORMAT, "config": settings, "files": {path.name: sha256(path) for path in files}}


def digest(described: dict[str, Any]) -> str:
    """The fingerprint: sha256 of `contents` in a fixed order."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """A file's sha256, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
