"""`--mode=train` and `evaluate`: what a run leaves, what may change when it is called again, and what may not."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest

from mmrec_jax import Recommender
from mmrec_jax.training import load_params
from mmrec_jax.training.manifest import checksums
from tests.tiny_dataset import EVENTS, ITEMS, USERS
from tests.tiny_run import arguments


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(trained, tmp_path / "shop")


def of_models(section, content):
    return {model: part["test"][section] for model, part in content["models"].items()}


def results(workdir, name="results"):
    return json.loads((workdir / f"{name}.json").read_text())


def last_step(workdir):
    return load_params(workdir, "last")[1]["progress"]["step"]


def test_a_run_leaves_everything_in_its_workdir(trained):
    names = {path.name for path in trained.iterdir()}
    made = {"config.json", "results.json", "report.md", "ranks_test.parquet", "metrics.csv", "learning_curve.png"}
    assert made | {"data", "store", "checkpoints", "baselines"} <= names
    assert (trained / "baselines" / "sasrec" / "checkpoints").is_dir()


def test_results_hold_every_model_in_the_same_form(trained):
    content = results(trained)
    assert list(content["models"]) == ["shop", "popularity", "sasrec"]
    for model in content["models"].values():
        assert {"HR@5", "NDCG@5", "MRR@5", "HR@10", "NDCG@10", "MRR@10"} <= set(model["test"]["metrics"])
        assert model["test"]["examples"] == USERS
        assert model["test"]["items"] == ITEMS
    assert content["models"]["shop"]["training"]["epochs"] == 3
    assert set(content["differences"]) == {"shop minus popularity", "shop minus sasrec"}


def test_baselines_are_sliced_by_the_modalities_of_the_run(trained):
    slices = of_models("slices", results(trained))
    assert slices["shop"]["modalities"].keys() == {"words", "picture+words"}
    for model in ("popularity", "sasrec"):
        assert slices[model].keys() == slices["shop"].keys()
        assert {k: v["count"] for k, v in slices[model]["modalities"].items()} == {
            k: v["count"] for k, v in slices["shop"]["modalities"].items()
        }


def test_ranks_are_kept_for_every_user(trained):
    ranks = pl.read_parquet(trained / "ranks_test.parquet")
    assert ranks["user"].n_unique() == len(ranks) == USERS
    hits = np.mean(ranks["rank"].to_numpy() <= 5)
    assert hits == pytest.approx(results(trained)["models"]["shop"]["test"]["metrics"]["HR@5"], abs=1e-12)


def test_what_is_printed_fits_a_terminal_of_80_columns(trained):
    lines = (trained.parent / "printed.txt").read_text(encoding="utf-8").splitlines()
    epochs = [line for line in lines if line.startswith("epoch ")]  # left to the terminal to wrap
    assert len(epochs) == 6
    assert max(len(line) for line in lines if line not in epochs) <= 80


def test_titles_are_printed_as_they_are_and_cut_where_they_are_long(trained):
    printed = (trained.parent / "printed.txt").read_text(encoding="utf-8")
    assert f"{USERS * EVENTS} interactions" in printed
    assert "[REC] :lamp: [/bold] a title" in printed
    assert "goes on and on,…" in printed or "goes on and on, …" in printed
    assert "up to here" not in printed


def test_evaluating_a_finished_workdir_needs_no_config_and_gives_the_same_metrics(copied, cli):
    code, out, _ = cli(["mmrec_jax", "--mode=evaluate", f"--workdir={copied}"])
    assert code == 0
    assert "shop: test split" in out
    again, before = results(copied, "evaluation"), results(copied)
    for section in ("metrics", "intervals", "slices"):
        assert of_models(section, again) == of_models(section, before)
    assert again["models"]["shop"]["training"] == before["models"]["shop"]["training"]


def test_evaluation_may_change_on_a_finished_run(copied, shop, cli):
    kept, ranks = (copied / "config.json").read_text(), (copied / "ranks_test.parquet").read_bytes()
    flags = ("--config.evaluation.ks=(3,)", "--config.evaluation.mask_history=False")
    code, out, _ = cli(arguments(shop, copied, "--mode=evaluate", *flags))
    assert code == 0
    assert "evaluation.ks: [5, 10] there, [3] now" in " ".join(out.split())
    found = results(copied, "evaluation")["models"]
    assert "HR@3" in found["sasrec"]["test"]["metrics"]
    assert (copied / "config.json").read_text() == kept
    # The ranks of the training stay beside its results: a comparison reads them.
    assert (copied / "ranks_test.parquet").read_bytes() == ranks
    hits = pl.read_parquet(copied / "ranks_evaluation.parquet")["rank"].to_numpy() <= 3
    assert np.mean(hits) == pytest.approx(found["shop"]["test"]["metrics"]["HR@3"], abs=1e-12)


def test_a_finished_run_called_again_trains_nothing_and_finds_the_same(copied, shop, cli):
    params, step, before = checksums(load_params(copied)[0]), last_step(copied), results(copied)
    code, _, _ = cli(arguments(shop, copied, "--config.show_users=0"))
    assert code == 0
    assert last_step(copied) == step
    assert checksums(load_params(copied)[0]) == params
    assert of_models("metrics", results(copied)) == of_models("metrics", before)


def test_a_finished_run_can_be_given_more_epochs(copied, shop, cli):
    step = last_step(copied)
    code, out, _ = cli(arguments(shop, copied, "--config.training.epochs=4", "--config.baselines=()"))
    assert code == 0
    assert last_step(copied) == step // 3 * 4
    assert "training.epochs: 3 there, 4 now" in out
    assert json.loads((copied / "config.json").read_text())["training"]["epochs"] == 4


def test_another_config_in_a_trained_workdir_is_refused_by_naming_every_difference(copied, shop, cli):
    kept = (copied / "config.json").read_text()
    code, _, err = cli(
        arguments(shop, copied, "--config.model.width=16", "--config.training.learning_rate=0.1", "--config.name=x")
    )
    assert code == 2
    assert "model.width: 8 there, 16 now" in err
    assert "training.learning_rate: 0.001 there, 0.1 now" in err
    assert "name" not in err.split("config:", 1)[1].split("Choose")[0]
    assert (copied / "config.json").read_text() == kept


def test_another_config_is_taken_where_nothing_was_trained_yet(copied, shop, cli):
    shutil.rmtree(copied / "checkpoints")
    code, out, _ = cli(arguments(shop, copied, "--mode=extract", "--config.model.width=16"))
    assert code == 0
    assert "Hidden-state store" in out
    assert json.loads((copied / "config.json").read_text())["model"]["width"] == 16


def test_media_paths_are_relative_to_the_source_wherever_its_files_lie(shop, cli, tmp_path):
    source = shutil.copytree(shop / "data", tmp_path / "data")
    for file, place in (("interactions.csv", "logs"), ("items.csv", "lists")):
        (source / place).mkdir()
        (source / file).rename(source / place / file)
    files = ("--config.data.interactions_file=logs/interactions.csv", "--config.data.items_file=lists/items.csv")
    code, out, err = cli(arguments(shop, tmp_path / "run", "--mode=extract", f"--config.data.source={source}", *files))
    assert (code, err) == (0, "")
    assert "Hidden-state store" in out


def test_a_finished_run_is_evaluated_where_its_raw_data_is_not(copied, cli):
    content = json.loads((copied / "config.json").read_text())
    content["data"]["source"] = "gone"
    (copied / "config.json").write_text(json.dumps(content))
    code, out, _ = cli(["mmrec_jax", "--mode=evaluate", f"--workdir={copied}"])
    assert code == 0
    assert "gone is not here; the data prepared from it before is used" in " ".join(out.split())
    assert of_models("metrics", results(copied, "evaluation")) == of_models("metrics", results(copied))


@pytest.fixture
def grown(copied, shop, tmp_path):
    """The copy, whose log has one event more since."""
    source = shutil.copytree(shop / "data", tmp_path / "data")
    with (source / "interactions.csv").open("a") as log:
        log.write("u00,i01,2000\n")
    content = json.loads((copied / "config.json").read_text())
    content["data"]["source"] = str(source)
    (copied / "config.json").write_text(json.dumps(content))
    return copied


def test_a_finished_run_is_used_after_its_log_has_grown(grown, cli, tmp_path):
    code, out, _ = cli(["mmrec_jax", "--mode=evaluate", f"--workdir={grown}"])
    assert code == 0
    assert "data is not as it was when the run was trained; the data prepared then is used" in " ".join(out.split())
    assert of_models("metrics", results(grown, "evaluation")) == of_models("metrics", results(grown))
    histories = tmp_path / "histories.json"
    histories.write_text('[["i01", "i02"]]')
    code, out, _ = cli(["mmrec_jax", "--mode=recommend", f"--workdir={grown}", f"--histories={histories}", "--k=3"])
    assert (code, "prepared then" in out) == (0, True)
    assert Recommender.load(grown).recommend([["i01", "i02"]], k=3).shape[0] == 3


def test_other_data_that_is_named_is_not_passed_over(grown, shop, cli, tmp_path):
    other = shutil.copytree(tmp_path / "data", tmp_path / "other")
    code, _, err = cli(arguments(shop, grown, "--mode=evaluate", f"--config.data.source={other}"))
    assert (code, "data: checkpoint" in err) == (2, True)


def test_a_run_whose_log_has_grown_is_not_trained_on(grown, shop, cli, tmp_path):
    code, _, err = cli(arguments(shop, grown, f"--config.data.source={tmp_path / 'data'}", "--config.show_users=0"))
    assert code == 2
    assert "data: checkpoint" in err


def test_a_damaged_newest_checkpoint_is_passed_over_and_the_run_ends_as_before(copied, shop, cli, caplog):
    params, before = checksums(load_params(copied, "last")[0]), results(copied)
    newest = copied / "checkpoints" / f"step_{last_step(copied)}"
    for file in (path for path in newest.rglob("*") if path.is_file() and path.stat().st_size > 200):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    code, _, _ = cli(arguments(shop, copied, "--config.show_users=0"))
    assert code == 0
    assert "Passing over it; the one before is used" in caplog.text
    assert checksums(load_params(copied, "last")[0]) == params
    assert of_models("metrics", results(copied)) == of_models("metrics", before)
