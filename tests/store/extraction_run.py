"""A process for the tests of interrupted and of shared extraction: extracts a made-up catalogue into a store."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import polars as pl

from mmrec_jax.backbones import ExtractionConfig, ModalityConfig
from mmrec_jax.store import ModalityReport, extract

WORDS = ("red", "green", "a", "blue sky", "of", "many", "words and more", "x")


def catalogue(items: int) -> pl.DataFrame:
    """Items with titles of different lengths; every 50th has none."""
    titles = [" ".join(WORDS[(i * k) % 8] for k in range(1, 2 + i % 6)) if i % 50 else "" for i in range(items)]
    return pl.DataFrame({"item": [f"item{i}" for i in range(items)], "title": titles})


def run(backbone: Path, store: Path, items: int = 400, **settings) -> dict[str, ModalityReport]:
    """Extracts `items` items in blocks of eight."""
    modalities = {
        "title": ModalityConfig("text", str(backbone), template="{title}", layers=(0, 3), max_tokens=16),
        "first": ModalityConfig("text", str(backbone), template="{title}", layers=(3,), pooling="cls", max_tokens=16),
    }
    config = ExtractionConfig(text_batch=1, commit_batches=1, progress=False, dtype="int8", **settings)
    return extract(modalities, catalogue(items), backbone, store, config)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        port, index, count = map(int, sys.argv[3:])
        jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    run(Path(sys.argv[1]), Path(sys.argv[2]), process_timeout=60)
