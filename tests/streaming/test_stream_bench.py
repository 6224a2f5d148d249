"""The arithmetic behind `bench/streaming.py`."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from scipy import stats

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


def test_the_seeds_part_of_a_draw_is_a_t_variate_of_their_mean(streaming):
    frames = [
        pl.DataFrame({"window": [2], "user": ["u"], "count": [1], "HR@10": [gain], "NDCG@10": [gain]})
        for gain in (0.1, 0.4, 0.1)
    ]
    draws, _ = streaming.resampled({"one": frames}, draws=40_000)  # of a single user: all of it is training
    expected = 0.2 + np.sqrt(0.03 / 3) * stats.t(2).ppf([0.025, 0.25, 0.75, 0.975])
    found = np.quantile(draws["one"][:, 0], [0.025, 0.25, 0.75, 0.975])
    # The outer quantiles of 40,000 draws are known to 2.4% of their distance from the mean; four times that.
    np.testing.assert_allclose(found - 0.2, expected - 0.2, rtol=0.1)


def test_what_is_forgotten_is_told_by_its_present_definition_and_hits_by_user_too(streaming, tmp_path, capsys):
    summary = {"training_seconds": 1, "time_ratio": None, "recompilations": 0, "peak_memory_bytes": 1}
    before = {"window": 1, "held_out": {"1": {"items": 9, "NDCG@10": 0.5}}}
    after = {"window": 2, "held_out": {"1": {"items": 9, "NDCG@10": 0.25}, "2": {"items": 12, "NDCG@10": 0.5}}}
    new = {"summary": summary | {"by_user": {"HR@10": 0.125}}, "windows": [before, after]}
    of_all_items = [{"window": n, "held_out": {"1": {"NDCG@10": 0.5 / n}}} for n in (1, 2)]
    old = {"summary": summary | {"forgetting": {"mean": 0.25}}, "windows": of_all_items}
    some = {name: np.full((2, 2), 0.5) for name in ("new", "old")}
    streaming.report({"new": [new], "old": [old]}, some, some, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["new"]["forgetting"], found["new"]["by_user"]) == ([0.25], [0.125])
    assert (found["old"]["forgetting"], found["old"]["by_user"]) == ([], [])
    shown = capsys.readouterr().out
    assert "25.00" in shown
    assert "12.50" in shown
