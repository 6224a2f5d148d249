"""Media as bytes in a Parquet file: read a few at a time, by threads or processes, with the states of the files."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from mmrec_jax.backbones import ExtractionConfig, ModalityConfig
from mmrec_jax.data.binary import BinaryColumn
from mmrec_jax.data.files import read_items
from mmrec_jax.errors import ConfigError, DataError
from mmrec_jax.store import extract
from tests.store.test_extract import contents
from tests.tiny_backbones import write_backbone

CONFIG = ExtractionConfig(image_batch=4, commit_batches=1, progress=False, max_failure_share=0.5)


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty items with pictures as bytes, in row groups of six, and the same pictures as files."""
    root = tmp_path_factory.mktemp("shop")
    pictures: list[bytes | None] = [picture(seed) for seed in range(20)]
    pictures[3], pictures[7], pictures[8] = None, b"", b"no picture"
    for number, content in enumerate(pictures):
        if content:
            (root / f"{number}.png").write_bytes(content)
    items = [f"i{number}" for number in range(20)]
    files = [f"{number}.png" if content else None for number, content in enumerate(pictures)]
    nested = [{"bytes": content, "path": "somewhere"} for content in pictures]
    table = pa.table({"item": items, "file": files, "raw": pictures, "nested": nested})
    pyarrow.parquet.write_table(table, root / "items.parquet", row_group_size=6)
    write_backbone(root / "vit", "vit")
    return root


def test_bytes_give_the_states_of_the_files_however_they_are_read(shop: Path, tmp_path: Path) -> None:
    catalogue = pl.DataFrame(read_items(shop / "items.parquet", "item").columns)
    assert catalogue["raw"][5] == "items.parquet#raw:5"
    assert catalogue["nested"][5] == "items.parquet#nested.bytes:5"
    in_memory = pl.read_parquet(shop / "items.parquet")
    stores = {}
    for name, column, table, processes in (
        ("file", "file", catalogue, 0),
        ("raw", "raw", catalogue, 1),
        ("nested", "nested", catalogue, 0),
        ("memory", "raw", in_memory, 0),
    ):
        modality = ModalityConfig("image", str(shop / "vit"), column=column, pooling="cls")
        config = replace(CONFIG, decode_processes=processes)
        report = extract({"cover": modality}, table, shop, tmp_path / name, config)["cover"]
        assert (report.present, report.absent, report.failed) == (17, 2, 1)
        assert report.reasons["i8"] == "not an image of a known format"
        assert report.reasons["i3"] == report.reasons["i7"] == "no image in the catalogue"
        made = contents(tmp_path / name / "cover")
        # What they are made of has other names.
        stores[name] = {file: held for file, held in made.items() if not file.startswith("content")}
    assert stores["raw"] == stores["nested"] == stores["memory"] == stores["file"]


def test_bytes_of_a_file_in_a_subfolder_are_found_from_the_media_root(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    file = Path(shutil.copy(shop / "items.parquet", tmp_path / "lists"))
    catalogue = pl.DataFrame(read_items(file, "item", tmp_path).columns)
    modality = ModalityConfig("image", str(shop / "vit"), column="raw", pooling="cls")
    report = extract({"cover": modality}, catalogue, tmp_path, tmp_path / "store", CONFIG)["cover"]
    assert (report.present, report.failed) == (17, 1)


def test_a_binary_column_is_read_in_any_order_and_keeps_few_records(shop: Path) -> None:
    column = BinaryColumn(shop / "items.parquet", "raw", near=4)
    for row in (0, 1, 5, 4, 6, 19, 12, 13, 2, 3):
        expected = pyarrow.parquet.read_table(shop / "items.parquet")["raw"][row].as_py()
        assert column[row] == expected
    assert sum(len(values) for _, values in column._kept) <= 12
    with pytest.raises(DataError, match="has no row 20: it holds 20"):
        column[20]


def test_bytes_are_no_text(shop: Path, tmp_path: Path) -> None:
    catalogue = pl.DataFrame(read_items(shop / "items.parquet", "item").columns)
    modality = ModalityConfig("text", str(write_backbone(tmp_path / "bert")), template="{raw}", max_tokens=16)
    with pytest.raises(ConfigError, match="names the column 'raw', which is binary"):
        extract({"title": modality}, catalogue, shop, tmp_path / "store", CONFIG)
