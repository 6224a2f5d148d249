"""Small sources to prepare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmrec_jax.data import DataConfig, PreparedData, prepare

INTERACTIONS = "user,item,timestamp\n"
ITEMS = "item,title\n"


@pytest.fixture
def tables(tmp_path: Path) -> Callable[..., DataConfig]:
    """Writes interactions.csv and items.csv, and gives a config without filters for them."""

    def write(interactions: str, items: str, **settings) -> DataConfig:
        source = tmp_path / "source"
        source.mkdir(exist_ok=True)
        (source / "interactions.csv").write_text(interactions, encoding="utf-8")
        (source / "items.csv").write_text(items, encoding="utf-8")
        return DataConfig(**({"source": str(source), "user_core": 0} | settings))

    return write


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    """90 users with 1 to 20 events on 40 items, leave-one-out."""
    source = tmp_path_factory.mktemp("synthetic")
    rng = np.random.default_rng(7)
    users = np.repeat(np.arange(90), rng.integers(1, 21, 90))
    pl.DataFrame(
        {
            "user": users,
            "item": rng.integers(100, 140, len(users)),
            "timestamp": rng.permutation(len(users)),
        }
    ).write_parquet(source / "interactions.parquet")
    pl.DataFrame({"item": range(100, 140), "title": [f"item {item}" for item in range(100, 140)]}).write_parquet(
        source / "items.parquet"
    )
    return prepare(DataConfig(source=str(source), user_core=0), source / "prepared")
