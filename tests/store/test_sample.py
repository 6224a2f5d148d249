"""The embedded sample: it is whole, small, and built by the project's own extraction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from mmrec_jax.errors import DataError
from mmrec_jax.samples.build import MAX_BYTES, MAX_FILE_BYTES, MODALITIES, TARGET, build
from mmrec_jax.store import HiddenStateStore
from tests.tiny_backbones import deepened, write_backbone


def test_the_sample_is_whole_and_its_store_fits_its_config() -> None:
    interactions = pl.read_parquet(TARGET / "interactions.parquet")
    items = pl.read_parquet(TARGET / "items.parquet")
    assert interactions.columns == ["user", "item", "rating", "timestamp"]
    assert items.columns == ["item", "title", "genres"]
    assert (len(interactions), interactions["user"].n_unique(), len(items)) == (88_160, 610, 3_567)
    assert set(interactions["item"]) == set(items["item"])

    store = HiddenStateStore.open(TARGET / "store")
    store.check(MODALITIES)
    assert all(store.complete(name) for name in MODALITIES)
    ids = items["item"].cast(pl.String).to_list()
    table = store.table({name: modality.layers for name, modality in MODALITIES.items()}, ids)
    assert table.complete
    assert {len(layers) for layers in table.values.values()} == {4}


def test_the_sample_is_small_and_carries_its_licence() -> None:
    sizes = [path.stat().st_size for path in TARGET.rglob("*") if path.is_file()]
    assert sum(sizes) <= MAX_BYTES
    assert max(sizes) <= MAX_FILE_BYTES
    licence = (TARGET / "LICENCE").read_text()
    assert "GroupLens" in licence
    assert "redistribute" in licence


def test_the_script_builds_a_sample_without_the_media_themselves(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "posters").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for item in (3, 7, 9):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(source / "posters" / f"{item}.jpg")
    (source / "ratings_5core_multimodal.csv").write_text(
        "userId,movieId,rating,timestamp\n1,7,4.0,10\n1,3,0.5,11\n2,9,5,12\n"
    )
    (source / "items.csv").write_text(
        "movieId,title,genres,imdbId,tmdbId,overview,has_poster\n"
        '9,C,Drama,1,1.0,"secret, plot",1\n3,A,Comedy|Drama,1,1.0,secret,1\n7,B,War,1,,secret,1\n8,D,War,1,,secret,1\n'
    )
    longer = {"embeddings.position_embeddings.weight": rng.normal(size=(128, 24)).astype(np.float32)}
    sizes = {"num_hidden_layers": 6, "max_position_embeddings": 128}
    text = write_backbone(tmp_path / "bert", weights=deepened("bert", 6) | longer, **sizes)
    image = write_backbone(tmp_path / "dinov2", "dinov2", deepened("dinov2", 12), num_hidden_layers=12)
    weights = {MODALITIES["overview"].backbone: str(text), MODALITIES["poster"].backbone: str(image)}
    size = build(source, weights, tmp_path / "made")
    assert size < 50_000
    made = HiddenStateStore.open(tmp_path / "made" / "store")
    made.check(MODALITIES)
    assert made.item_ids == ["3", "7", "9"]
    assert {info.dtype for info in made.modalities.values()} == {"int8"}
    assert pl.read_parquet(tmp_path / "made" / "items.parquet").rows() == [
        (3, "A", "Comedy|Drama"),
        (7, "B", "War"),
        (9, "C", "Drama"),
    ]
    content = b"".join(path.read_bytes() for path in (tmp_path / "made").rglob("*") if path.is_file())
    assert b"secret" not in content
    assert not list((tmp_path / "made").rglob("*.jpg"))


def test_a_folder_that_is_not_the_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be the movielens-small folder"):
        build(tmp_path, {}, tmp_path / "made")
