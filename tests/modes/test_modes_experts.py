"""A run with several experts a modality, from the command line to its results."""

from __future__ import annotations

import json

import polars as pl
import pytest

from tests.tiny_run import arguments

FLAGS = (
    "--config.fusion.kind=experts",
    "--config.fusion.experts=3",
    "--config.fusion.top_k=2",
    "--config.training.epochs=2",
    "--config.training.log_every=1",
    "--config.baselines=()",
    "--config.show_users=0",
)


def test_a_run_tells_how_its_experts_are_used(cli, shop, trained, tmp_path):
    code, _, err = cli(arguments(shop, tmp_path, *FLAGS, f"--config.store={trained / 'store'}"))
    assert code == 0, err
    assert "NDCG@10" in json.loads((tmp_path / "results.json").read_text())["models"]["shop"]["test"]["metrics"]
    rows = pl.read_csv(tmp_path / "metrics.csv")
    logged, told = (
        {name: part["value"].to_list() for (name,), part in rows.filter(split=split).group_by("name")}
        for split in ("train", "train_epoch")
    )
    for name in ("words", "picture"):
        assert all(0 <= value <= 1.0986 + 1e-5 for value in told[f"router_entropy_{name}"])  # log 3
        assert all(1 <= value <= 3 for value in told[f"expert_load_max_{name}"])
        loads = [logged[f"expert_load_{name}/{expert}"] for expert in range(3)]
        assert all(sum(step) == pytest.approx(3, abs=1e-5) for step in zip(*loads, strict=True))
        assert len(loads[0]) == len(logged["loss"]) > 2
        assert all(1 <= value <= 3 for value in told[f"router_balance_{name}"])
        assert len(told[f"choices_dropped_{name}"]) == len(told[f"experts_dead_{name}"]) == len(told["loss"]) == 2
