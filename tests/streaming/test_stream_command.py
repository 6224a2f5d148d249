"""The stream of the embedded sample from the command line, and the arguments of its config."""

from __future__ import annotations

import json
import runpy

import polars as pl
import pytest

from mmrec_jax.config import resolve
from mmrec_jax.errors import ConfigError
from mmrec_jax.training.lock import only_training_in
from tests.tiny_run import ROOT

FILE = ROOT / "configs" / "xsmoe.py"
SMALL = (
    "--config.data.min_rating=5",
    "--config.data.user_core=40",
    "--config.stream.targets=last",
    "--config.stream.forgetting=1",
    "--config.model.width=8",
    "--config.model.bottleneck=4",
    "--config.modalities.overview.layers=(0,6)",
    "--config.user.blocks=1",
    "--config.training.batch_size=64",
)


def config_of(argument: str = ""):
    return resolve(runpy.run_path(str(FILE))["get_config"](argument))


@pytest.mark.long
def test_the_config_asks_for_a_stream_and_the_command_goes_on_or_only_reports(cli, tmp_path):
    command = ["mmrec_jax", f"--config={FILE}:smoke,text", f"--workdir={tmp_path}", *SMALL]
    code, out, err = cli(command)
    assert code == 0, err
    content = json.loads((tmp_path / "stream.json").read_text())
    assert [window["window"] for window in content["windows"]] == [1, 2]
    assert content["windows"][1]["recompilations"] == 0
    assert content["summary"]["windows"] == 2
    assert "tested on the next window" in out
    for name in ("stream.csv", "quality.png", "experts.png"):
        assert (tmp_path / name).stat().st_size > 0
    ranks = pl.read_parquet(tmp_path / "ranks" / "0003.parquet")
    assert ranks.columns == ["user", "item", "rank"]
    assert len(ranks) == content["windows"][1]["test"]["examples"]
    code, _, _ = cli(["mmrec_jax", "--mode=stream", f"--workdir={tmp_path}"])
    assert code == 0
    assert json.loads((tmp_path / "stream.json").read_text())["windows"] == content["windows"]
    kept = (tmp_path / "config.json").read_bytes()
    for key, value in (("stream.threshold", 0.5), ("training.epochs", 9), ("data.min_rating", 4)):
        code, _, err = cli([*command, f"--config.{key}={value}"])
        assert (code, "another config" in err, f"\n  {key}: " in err) == (2, True, True), err
    assert (tmp_path / "config.json").read_bytes() == kept


def test_a_second_stream_in_the_same_workdir_is_refused(cli, tmp_path):
    with only_training_in(tmp_path, "stream"):
        code, _, err = cli(["mmrec_jax", f"--config={FILE}:smoke,text", f"--workdir={tmp_path}", *SMALL])
    assert (code, f"Another stream is under way in {tmp_path}" in err) == (2, True), err
    assert not (tmp_path / "stream").exists()


def test_arguments_differ_from_the_paper_by_what_they_are_named_after():
    full = config_of()
    assert full.mode == "stream"
    assert (full.stream.expand, full.stream.prune, full.stream.learner) == (True, True, "carry")
    assert config_of("without_pruning").stream.expand
    assert not config_of("without_pruning").stream.prune
    assert not config_of("without_expansion").stream.expand
    assert config_of("experts").model.experts == 4
    assert list(config_of("text").modalities) == ["overview"]
    assert list(config_of("image").modalities) == ["poster"]
    for learner in ("retrain_all", "retrain_window", "frozen", "replay"):
        assert config_of(learner).stream.learner == learner
    assert config_of("finetune").model.system == "linear"
    paper = config_of("paper").stream
    assert (paper.context, paper.targets, paper.validation, paper.valid_candidates) == (
        "window",
        "last",
        "slice",
        "slice",
    )
    with pytest.raises(ConfigError, match="does not know the argument"):
        config_of("papers")
