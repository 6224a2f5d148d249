"""Every config of `configs/` runs from the command line to its results, on a shrunken scale."""

from __future__ import annotations

import json

import pytest

from tests.tiny_dataset import write_sequences
from tests.tiny_run import ROOT

COMPARISONS = {"compare", "staged"}  # run by tests/comparison
STREAMS = {"xsmoe"}  # run by tests/streaming
PLANNED = {"pod"}  # too large for one machine: looked at by tests/planning
CONFIGS = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - COMPARISONS - STREAMS - PLANNED)
SMALL = (
    "--config.training.epochs=1",
    "--config.training.batch_size=256",
    "--config.model.width=8",
    "--config.model.length=5",
    "--config.model.window=last",
    "--config.user.blocks=1",
    "--config.evaluation.bootstrap=20",
    "--config.show_users=1",
)


LONG = {"iisan_versa", "movielens"}  # of the kind of others, and the longest


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in LONG else [])
        for name in (*CONFIGS, "live:bitfit,crossan")
    ],
)
def test_a_config_runs_to_its_results(name, cli, shop, tmp_path):
    argument, flags = "", []
    if name.startswith("live"):
        name, _, argument = name.partition(":")
        argument = f":{argument or 'lora'},smoke"
        flags = [
            f"--config.data.source={shop / 'data'}",
            f"--config.modalities.title.backbone={shop / 'bert'}",
            "--config.modalities.title.template={title}. {about}",
            "--config.modalities.title.layers=(0,2,3)",
            "--config.modalities.title.max_tokens=16",
            "--config.evaluation.ks=(5,10)",
            *(["--config.model.bottleneck=4"] if "crossan" in argument else ["--config.methods.title.rank=2"]),
        ]
    elif name in ("crossan", "iisan", "iisan_versa", "frozen", "sasrec_content"):
        argument = ":smoke"  # on the embedded sample, with its own store
        flags = ["--config.modalities.overview.layers=(2,6)", "--config.modalities.poster.layers=(4,12)"]
    elif name == "scientific":
        flags = [
            f"--config.data.source={write_sequences(tmp_path / 'data')}",
            f"--config.modalities.title.backbone={shop / 'bert'}",
            "--config.modalities.title.layers=(0,2,3)",
            "--config.modalities.title.max_tokens=16",
            "--config.model.bottleneck=4",
            "--config.evaluation.ks=(10,20)",
        ]
    elif name == "movielens":
        argument = ":smoke"
        flags = [
            f"--config.data.source={shop / 'data'}",
            "--config.data.interactions_file=interactions.csv",
            f"--config.modalities.title.backbone={shop / 'bert'}",
            "--config.modalities.title.template={title}",
            "--config.modalities.title.layers=(0,2)",
            "--config.modalities.title.max_tokens=16",
            f"--config.modalities.overview.backbone={shop / 'bert'}",
            "--config.modalities.overview.template={about}",
            "--config.modalities.overview.layers=(1,3)",
            "--config.modalities.overview.max_tokens=16",
            f"--config.modalities.poster.backbone={shop / 'vit'}",
            "--config.modalities.poster.path_template={picture}",
            "--config.modalities.poster.layers=(0,2)",
            "--config.evaluation.ks=(5,10)",
            "--config.baselines=('popularity',)",
        ]
    workdir = tmp_path / "run"
    code, out, err = cli(
        ["mmrec_jax", f"--config={ROOT}/configs/{name}.py{argument}", f"--workdir={workdir}", *flags, *SMALL]
    )
    assert code == 0, err
    content = json.loads((workdir / "results.json").read_text())
    assert "NDCG@10" in content["models"][content["name"]]["test"]["metrics"]
    assert "test split" in out
