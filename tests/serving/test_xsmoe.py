"""A run of XSMoE from the command line: trained, counted, explained."""

import json

import pytest

from mmrec_jax.main import command
from mmrec_jax.serving import Recommender
from mmrec_jax.training import load_params
from mmrec_jax.training.trees import named_leaves
from tests.tiny_dataset import NO_PICTURE
from tests.tiny_run import arguments


@pytest.fixture(scope="module")
def finished(shop, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("xsmoe") / "shop"
    flags = ("model.system=xsmoe", "fusion.kind=add", "model.experts=2", "model.capacity=3", "training.epochs=1",
             "evaluation.bootstrap=0")  # fmt: skip
    argv = arguments(shop, workdir, *(f"--config.{flag}" for flag in flags), "--config.baselines=()")
    assert command(argv) == 0
    return workdir


def test_results_count_the_slots_in_use(finished):
    (model,) = json.loads((finished / "results.json").read_text())["models"].values()
    params, _ = load_params(finished)
    leaves = named_leaves(params)
    rungs = [name.removesuffix("/experts/down") for name in leaves if name.endswith("/experts/down")]
    assert len(rungs) == 3
    used = sum(
        2 * 2 * leaves[f"{name}/experts/down"][0].size + 3 * leaves[f"{name}/router/rows"][0].size for name in rungs
    )
    others = sum(leaf.size for name, leaf in leaves.items() if "/ladders/" not in name)
    assert model["training"]["parameters"] == model["training"]["total_parameters"] == used + others


def test_items_are_explained_by_the_backbone_and_the_experts_in_use(finished):
    recommender = Recommender.load(finished)
    explained = recommender.explain(["i01", NO_PICTURE])
    assert set(explained.columns) == {"item", "title", "modality", "weight", "backbone", "expert_0", "expert_1"}
    for row in explained.iter_rows(named=True):
        rungs = {"words": 2, "picture": 1}[row["modality"]]
        shares = [row[source] for source in ("backbone", "expert_0", "expert_1")]
        assert [len(share) for share in shares] == [rungs] * 3
        assert [sum(each) for each in zip(*shares, strict=True)] == pytest.approx([1.0] * rungs, abs=1e-5)  # float32
    weights = {(row["item"], row["modality"]): row["weight"] for row in explained.iter_rows(named=True)}
    assert weights[NO_PICTURE, "picture"] == 0
    assert weights["i01", "picture"] > 0
    assert len(recommender.recommend([["i01", "i02"]], k=5)) == 5
