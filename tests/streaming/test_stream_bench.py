"""The arithmetic behind `bench/streaming.py`."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from tests.tiny_run import ROOT


@pytest.fixture
def streaming(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import streaming

    return streaming


def write(folder, window, users, ranks):
    folder.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame({"user": users, "item": ["i"] * len(users), "rank": pl.Series(ranks, dtype=pl.Int32)})
    frame.write_parquet(folder / f"{window:04d}.parquet")


def test_a_window_counts_as_much_as_another_and_a_target_in_it_as_much_as_another(streaming, tmp_path):
    write(tmp_path / "a" / "ranks", 2, ["u", "u", "v", "v"], [1, 20, None, 3])
    write(tmp_path / "a" / "ranks", 3, ["w"], [10])
    gains = streaming.user_gains(tmp_path / "a")
    assert gains["count"].to_list() == [2, 2, 1]
    draws, observed = streaming.resampled({"one": [gains, gains], "same": [gains]}, draws=300)
    assert observed["one"][:, 0].tolist() == [pytest.approx((2 / 4 + 1) / 2)] * 2
    assert observed["one"][0, 1] == pytest.approx(((1 + 0.5) / 4 + 1 / np.log2(11)) / 2)
    np.testing.assert_allclose(draws["one"], draws["same"])  # the same users are drawn for both
    # Two users of one hit each: always half; the single one of window 3 is always drawn.
    np.testing.assert_allclose(draws["one"][:, 0], 0.75)
    assert draws["one"][:, 1].std() > 0.01
