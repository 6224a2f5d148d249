"""`--mode=compare`: one command from configs to a table, and what it refuses before anything runs."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import asdict

import numpy as np
import polars as pl
import pytest

from mmrec_jax.evaluation.metrics import metrics
from mmrec_jax.evaluation.ranking import MISS
from mmrec_jax.evaluation.seeds import seed_differences
from mmrec_jax.training import load_params
from mmrec_jax.training.lock import only_training_in
from mmrec_jax.training.trees import named_leaves
from tests.comparison.conftest import PLAIN
from tests.tiny_dataset import ITEMS, USERS

STAGED = """
config.plan = 'staged'
config.stages = (('words',), ('words', 'picture'))
config.settings = (*config.settings, 'training.learning_rate=1e-30')
config.runs.shop = run(both)
config.runs.fresh = run(both, warm_start=False)
"""


def content(workdir):
    return json.loads((workdir / "comparison.json").read_text())


def one_line(text):
    return " ".join(text.split())


def test_the_table_holds_the_means_over_seeds_of_the_runs_own_results(plain):
    found = content(plain)
    assert (found["users"], found["items"], found["failed"]) == (USERS, ITEMS, {})
    assert [row["name"] for row in found["rows"]] == ["words", "layers"]  # in the order of the file
    for row in found["rows"]:
        runs = [json.loads((plain / "runs" / row["name"] / f"seed_{seed}/results.json").read_text()) for seed in (0, 1)]
        own = [run["models"][row["name"]] for run in runs]
        for name in ("HR@5", "NDCG@5", "MRR@5"):
            values = [result["test"]["metrics"][name] for result in own]
            assert row["metrics"][name]["seeds"] == pytest.approx(values, abs=1e-12)
            assert row["metrics"][name]["mean"] == pytest.approx(np.mean(values), abs=1e-12)
        assert row["cost"]["parameters"] == own[0]["training"]["parameters"]
        assert row["cost"]["seconds_per_epoch"] == np.mean([r["training"]["seconds_per_epoch"] for r in own])
    words, layers = found["rows"]
    assert (words["reference"], layers["reference"]) == ("layers", None)
    difference = words["differences"]["NDCG@5"]
    assert difference["mean"] == pytest.approx(words["metrics"]["NDCG@5"]["mean"] - layers["metrics"]["NDCG@5"]["mean"])
    assert difference["low"] <= difference["mean"] <= difference["high"]
    # More layers are more parameters, all of 10%; time and memory are as they happen to be.
    assert words["cost"]["parameters"] > layers["cost"]["parameters"]
    assert 0 <= layers["tpme"] <= 0.9
    assert 0.1 <= words["tpme"] <= 1


def test_the_same_is_written_for_people_and_for_programs(plain):
    page = (plain / "comparison.md").read_text()
    assert f"{USERS} users, {ITEMS} items" in page
    assert "| layers | 2 |" in page
    assert "training s: all epochs with their evaluations, whose programs the first run of a kind compiles" in page
    records = list(csv.DictReader((plain / "comparison.csv").read_text().splitlines()))
    assert [record["name"] for record in records] == ["words", "layers"]
    assert float(records[0]["NDCG@5"]) == content(plain)["rows"][0]["metrics"]["NDCG@5"]["mean"]
    assert (plain / "comparison.png").read_bytes()[:4] == b"\x89PNG"


def test_runs_share_prepared_data_and_one_store_with_the_layers_of_all(plain):
    from mmrec_jax.store import HiddenStateStore

    assert sorted(path.name for path in plain.glob("store*")) == ["store"]
    assert HiddenStateStore.open(plain / "store").modalities["words"].layers == (0, 1, 2, 3)
    assert len(list((plain / "data").glob("*/manifest.json"))) == 1
    made = {path.name for path in (plain / "runs/words/seed_0").iterdir()}
    assert {"results.json", "log.txt", "checkpoints", "ranks_test.parquet"} <= made
    assert not {"data", "store"} & made


def test_a_finished_comparison_called_again_trains_nothing(plain, compared, begun, tmp_path):
    workdir = shutil.copytree(plain, tmp_path / "copied")
    _, code, out, _ = compared(PLAIN, workdir=workdir)
    assert (code, begun) == (0, [])
    assert "4 of them were finished before" in out
    assert content(workdir)["rows"] == content(plain)["rows"]


def test_a_stopped_comparison_goes_on_and_another_seed_is_added(plain, compared, begun, tmp_path):
    workdir = shutil.copytree(plain, tmp_path / "copied")
    (workdir / "runs/layers/seed_1/results.json").unlink()
    _, code, _, err = compared(PLAIN, "--seeds=0,1,2", workdir=workdir)
    assert code == 0, err
    assert begun == ["layers, seed 1", "words, seed 2", "layers, seed 2"]
    assert [row["seeds"] for row in content(workdir)["rows"]] == [[0, 1, 2], [0, 1, 2]]


def test_a_second_comparison_in_the_same_workdir_is_refused(compared, begun, tmp_path):
    with only_training_in(tmp_path / "compared", "comparison"):
        _, code, _, err = compared(PLAIN)
    assert (code, begun) == (2, [])
    assert f"Another comparison is under way in {tmp_path / 'compared'}" in err


def test_a_failed_run_is_reported_and_ends_no_other(compared):
    workdir, code, out, err = compared(
        "config.runs.broken = run(words, 'training.learning_rate=1e30')\nconfig.runs.words = run(words)"
    )
    assert code == 2
    failure = content(workdir)["failed"]["broken, seed 0"]
    assert "not finite" in failure["error"]
    assert failure["log"] == str(workdir / "runs/broken/seed_0/log.txt")
    assert "1/3 hidden states of words in" in out
    assert "FAILED, see" in out
    assert "broken, seed 0 (log: " in err
    assert [(row["name"], row["differences"]) for row in content(workdir)["rows"]] == [("words", {})]
    assert "- broken, seed 0:" in (workdir / "comparison.md").read_text()


def test_a_backbone_that_cannot_be_read_ends_only_what_reads_it(compared, begun, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    broken = f"'modalities.picture.backbone={tmp_path / 'broken'}'"
    workdir, code, _, err = compared(f"config.runs.text = run(words)\nconfig.runs.pictures = run(both, {broken})")
    assert code == 2
    store = workdir / "store"
    assert begun == [f"hidden states of words in {store}", f"hidden states of picture in {store}", "text, seed 0"]
    assert f"not begun: hidden states of picture in {store} failed" in one_line(err)
    assert [row["name"] for row in content(workdir)["rows"]] == ["text"]


def test_a_stage_begins_with_the_parameters_of_the_one_before(compared, begun):
    workdir, code, out, err = compared(STAGED)
    assert code == 0, err
    assert begun[:2] == [f"hidden states of {name} in {workdir / 'store'}" for name in ("words", "picture")]
    # The first stage of both is one training.
    assert begun[2:] == ["shop 1: words, seed 0", "shop 2: +picture, seed 0", "fresh 2: +picture, seed 0"]
    assert "fresh 1: words, seed 0: the same as shop 1: words, seed 0, trained once" in out
    # With this learning rate parameters stay what they were, but for 1e-29.
    stages = workdir / "runs/shop"
    before, after = (named_leaves(load_params(stages / f"stage_{number}/seed_0")[0]) for number in (1, 2))
    assert before.keys() < after.keys()
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-28, err_msg=name)
    assert json.loads((stages / "stage_2/seed_0/warm_start.json").read_text())["from"] == str(stages / "stage_1/seed_0")
    assert not (workdir / "runs/fresh/stage_2/seed_0/warm_start.json").exists()
    assert not (workdir / "runs/fresh/stage_1").exists()
    rows = content(workdir)["rows"]
    assert [row["reference"] for row in rows] == [None, "shop 1: words", None, "fresh 1: words"]
    assert (rows[2]["metrics"], rows[2]["cost"]) == (rows[0]["metrics"], rows[0]["cost"])
    first, second = rows[0]["metrics"]["HR@5"]["mean"], rows[3]["metrics"]["HR@5"]["mean"]
    assert rows[3]["differences"]["HR@5"]["mean"] == pytest.approx(second - first, abs=1e-12)
    assert "the stage before" in one_line(out)
    # Nothing is trained again where the whole folder lies somewhere else.
    begun.clear()
    moved = shutil.move(workdir, workdir.with_name("moved"))
    assert compared(STAGED, workdir=moved)[1] == 0
    assert begun == []
    shutil.move(moved, workdir)
    # Where the first stage is taken away, the second is not one that began with it any more.
    shutil.rmtree(stages / "stage_1")
    _, code, _, err = compared(STAGED)
    assert (code, begun) == (2, [])
    assert f"remove {stages / 'stage_2/seed_0'} as well" in one_line(err)


CONTINUED = """
config.plan = 'staged'
config.stages = (('words',), ('words', 'picture'))
config.runs.shop = run(both)
config.runs.continued = run(both, stages=(('words',), ('words',)))
config.seeds = (0, 1)
config.baseline = 'continued'
"""


@pytest.mark.long
def test_stages_are_compared_with_those_of_a_baseline_and_a_finished_workdir_with_those_of_another(compared, begun):
    workdir, code, _, err = compared(CONTINUED)
    assert code == 0, err
    assert "NDCG@5 to continued, same stage" in (workdir / "comparison.md").read_text()
    rows = content(workdir)["rows"]
    names = ["shop 1: words", "shop 2: +picture", "continued 1: words", "continued 2: the same again"]
    assert [row["name"] for row in rows] == names
    assert [row["reference"] for row in rows] == [*names[2:], None, None]
    first, second = (
        np.stack([
            pl.read_parquet(workdir / f"runs/{name}/stage_2/seed_{seed}/ranks_test.parquet").sort("user")["rank"]
            .fill_null(MISS).to_numpy() for seed in (0, 1)
        ])
        for name in ("shop", "continued")
    )  # fmt: skip
    # Both began with the same run of each seed. The first stages are the same runs: nothing is tested there, and p is
    # adjusted for one row.
    expected = asdict(seed_differences(first, second, (5,), paired=True)["NDCG@5"])
    assert rows[1]["differences"]["NDCG@5"] == expected | {"p_adjusted": expected["p_value"]}
    assert rows[0]["differences"]["NDCG@5"] == {"mean": 0, "low": 0, "high": 0, "p_value": 1, "p_adjusted": 1}
    begun.clear()
    assert compared(CONTINUED, "--baseline=shop")[1] == 0
    assert [row["reference"] for row in content(workdir)["rows"]] == [None, None, *names[:2]]
    assert compared(CONTINUED, "--baseline=")[1] == 0
    assert [row["reference"] for row in content(workdir)["rows"]] == [None, names[0], None, names[2]]
    assert begun == []


def test_runs_that_are_the_same_are_trained_once_and_fail_together(compared, begun):
    body = "\n".join(
        f"config.runs.{name} = run(words, 'training.learning_rate={rate}')"
        for name, rate in {"good": 1e-3, "bad": 1e30, "good_again": 1e-3, "bad_again": 1e30}.items()
    )
    workdir, code, _, _ = compared(body)
    assert code == 2
    assert begun[1:] == ["good, seed 0", "bad, seed 0"]
    found = content(workdir)
    assert [row["name"] for row in found["rows"]] == ["good", "good_again"]
    assert {value["mean"] for value in found["rows"][1]["differences"].values()} == {0}
    assert found["failed"]["bad_again, seed 0"]["error"] == "the same as bad, seed 0, which failed"
    assert found["failed"]["bad_again, seed 0"]["log"] == str(workdir / "runs/bad/seed_0/log.txt")
    # A run of its own that was finished before is kept and read, though another is the same.
    shutil.copytree(workdir / "runs/good", workdir / "runs/good_again")
    begun.clear()
    assert compared(body)[1] == 2
    assert begun == ["bad, seed 0"]


def test_metrics_are_computed_from_the_ranks_whatever_cut_offs_the_runs_had(compared, plain, tmp_path):
    workdir = shutil.copytree(plain, tmp_path / "copied")
    assert compared(PLAIN, "--config.ks=(3,)", workdir=workdir)[1] == 0
    ranks = pl.read_parquet(workdir / "runs/words/seed_1/ranks_test.parquet")["rank"].fill_null(MISS).to_numpy()
    assert content(workdir)["rows"][0]["metrics"]["HR@3"]["seeds"][1] == metrics(ranks, (3,))["HR@3"]


def test_a_plot_that_fails_is_a_warning_and_all_else_is_written(compared, plain, monkeypatch, tmp_path):
    def fails(*_):
        raise ValueError("'yerr' must not contain negative values")

    workdir = shutil.copytree(plain, tmp_path / "copied")
    assert "![accuracy against cost](comparison.png)" in (workdir / "comparison.md").read_text()
    monkeypatch.setattr("mmrec_jax.comparison.compare.plot", fails)
    _, code, out, err = compared(PLAIN, "--config.ks=(3,)", workdir=workdir)
    assert code == 0, err
    assert "could not be drawn: ValueError: 'yerr' must not contain negative values" in one_line(out)
    assert out.rstrip().endswith("comparison.md, .json, .csv")
    assert "NDCG@3" in content(workdir)["rows"][0]["metrics"]
    assert (workdir / "comparison.csv").read_text().splitlines()[0].count("NDCG@3") == 5
    assert "| HR@3 |" in (workdir / "comparison.md").read_text()
    assert "comparison.png" not in (workdir / "comparison.md").read_text()
    assert not (workdir / "comparison.png").exists()


def test_nothing_of_the_comparison_before_stays_where_all_runs_fail(compared, plain, tmp_path):
    workdir = shutil.copytree(plain, tmp_path / "copied")
    _, code, _, err = compared("config.runs.broken = run(words, 'training.learning_rate=1e30')", workdir=workdir)
    assert (code, "there is nothing to compare" in one_line(err)) == (2, True)
    assert sorted(path.name for path in workdir.glob("comparison.*")) == ["comparison.json", "comparison.md"]


@pytest.mark.parametrize(
    ("body", "flags", "messages"),
    [
        ("", (), ["runs: there is none to compare"]),
        (PLAIN, ("--baseline=other",), ["baseline='other': choose one of words, layers"]),
        (PLAIN, ("--config.seeds=()",), ["name at least one, such as 0,1,2"]),
        (PLAIN, ("--seeds=1,1",), ["each may occur once"]),
        (PLAIN, ("--seeds=one",), ["--seeds=one: write whole numbers"]),
        (PLAIN, ("--jobs=0",), ["jobs=0: must be 1 or more"]),
        (PLAIN, ("--config.bootstrap=99",), ["bootstrap=99: must be 100 or more"]),
        (PLAIN, ("--config.plan=stages",), ["plan='stages': choose one of plain, staged"]),
        (PLAIN, ("--config.plan=staged",), ["runs.words: has no stages"]),
        (PLAIN + "config.seed = 3", (), ["the comparison: unknown key seed. Did you mean seeds?"]),
        ("config.runs.a = run('gone.py')\nconfig.runs.b = run(words, 'training.epoch=1')", (),
         ["runs.a: --config=", "gone.py: there is no such file", "runs.b: --config.training.epoch: the config has no"]),
        ("config.runs.a = run(words, 'quick')", (), ["runs.a: 'quick' is no setting: write KEY=VALUE"]),
        ("config.runs.a = run(words, modalities=('sound',))", (), ["modality sound is not in its config, which has"]),
        ("config.runs['a b'] = run(words)", (), ["'a b' is no name of a folder"]),
        ("config.runs.a = 'words.py'", (), ["runs.a: write run('FILE.py', ...)"]),
        (PLAIN, ("--config.ks=(31,)",), ["ks: k = 31 is larger than the catalogue of 30 items"]),
        ("config.runs.a = run(words, 'evaluation.ks=(31,)')\nconfig.runs.c = run(words, 'evaluation.ks=(31,)')\n"
         "config.runs.b = run(words, 'modalities.words.template={x}')", (),
         ["a, c: evaluation.ks: k = 31 is larger", "b: template '{x}' names the column 'x'"]),
        ("config.runs.a = run(words, 'training.groups=((\"items(\", 0.1),)')", (),
         ["'items(' is no regular expression"]),
        ("config.runs.a = run(words, 'training.groups=((\"itmes\", 0.1),)')", (),
         ["training.groups: 'itmes' matches the beginning of no parameter path"]),
        ("config.runs.a = run(words, 'training.groups=((\"items/adapters/sanb_sound\", 0.1),)')", (),
         ["'items/adapters/sanb_sound' matches the beginning of no parameter path; near it"]),
        (STAGED.replace("('words', 'picture')", "('picture',)"), (), ["may only add modalities"]),
        ("config.runs.a = run(words)\nconfig.runs.b = run(both, 'modalities.picture.backbone=/gone')\n"
         "config.runs.c = run(both, 'modalities.picture.backbone=package:gone')", (),
         ["b: modalities.picture: backbone '/gone': there is no such directory",
          "c: modalities.picture: backbone 'package:gone': no such package"]),
        ("config.runs.a = run(words)\nconfig.runs.b = run(words, 'mode=stream')", (),
         ["runs.b: its config has mode='stream'", "run it on its own with --mode=stream (bench/streaming.py"]),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_runs(compared, begun, body, flags, messages):
    _, code, _, err = compared(body, *flags)
    assert code == 2
    assert [message for message in messages if message not in one_line(err)] == []
    assert "Traceback" not in err
    assert begun == []


def test_methods_with_other_users_or_items_are_refused(compared, begun):
    temporal = "'data.split=temporal', 'data.valid_fraction=0.3', 'data.test_fraction=0.3'"
    _, code, _, err = compared(f"config.runs.a = run(words)\nconfig.runs.b = run(words, {temporal})")
    assert (code, begun) == (2, [])
    assert "a and b are evaluated on other examples" in err
    assert "held-out items: " in err  # the last event of each user, and the first of the last 30%


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("evaluation.mask_history=False", "settings: evaluation.mask_history=True and False"),
        (
            "data.max_length=5",
            "settings: data.max_length=0 and 5 (how much of a history a model reads is model.length)",
        ),
    ],
)
def test_methods_whose_rankings_leave_out_other_items_are_refused(compared, begun, setting, told):
    _, code, _, err = compared(f"config.runs.a = run(words)\nconfig.runs.b = run(words, {setting!r})")
    assert (code, begun) == (2, [])
    assert "a and b are evaluated on other examples: items left out of the ranking for user 'u00'" in one_line(err)
    assert told in one_line(err)
    assert "give them the same data, candidates and protocol" in one_line(err)


@pytest.mark.long
def test_a_modality_made_in_another_way_gets_a_store_of_its_own(compared, begun):
    body = "config.runs.a = run(words)\nconfig.runs.b = run(words, 'modalities.words.pooling=cls')"
    workdir, code, _, err = compared(body)
    assert code == 0, err
    assert begun[:2] == [f"hidden states of words in {workdir / store}" for store in ("store", "store_2")]
    _, code, _, err = compared(body + f"\nconfig.settings = (*config.settings, 'store={workdir / 'store'}')")
    assert (code, "b: the hidden-state store" in err) == (2, True)


def test_a_run_that_was_trained_longer_is_not_what_is_compared(compared, plain, begun, tmp_path):
    workdir = shutil.copytree(plain, tmp_path / "copied")
    _, code, _, err = compared(PLAIN + "config.settings = (*config.settings, 'training.epochs=2')", workdir=workdir)
    assert (code, begun) == (2, [])
    assert "training.epochs: 1 there, 2 now" in err


def test_settings_that_changed_are_named_with_all_folders_and_what_can_be_done_here(compared, plain, begun, tmp_path):
    workdir = shutil.copytree(plain, tmp_path / "copied")
    faster = "config.settings = (*config.settings, 'training.learning_rate=0.5')"
    _, code, _, err = compared(PLAIN + faster, workdir=workdir)
    assert (code, begun) == (2, [])
    for name in ("words", "layers"):
        for seed in (0, 1):
            assert f"runs/{name}/seed_{seed}: training.learning_rate: 0.001 there, 0.5 now" in err
    assert "change the settings back, choose another --workdir, or remove these folders" in one_line(err)
    assert "--config" not in err


def test_a_name_that_is_no_folders_is_refused_with_its_file(cli, shop, tmp_path):
    files = {"dot.py": "crossan_v1.2", "slash.py": "a/b"}
    for file, name in files.items():
        lines = "from tests.tiny_config import get_config as made\n\ndef get_config():\n"
        (tmp_path / file).write_text(
            f"{lines}    config = made('{shop},words')\n    config.name = '{name}'\n    return config"
        )
    flag = ",".join(str(tmp_path / file) for file in files)
    code, _, err = cli(["mmrec_jax", "--mode=compare", f"--configs={flag}", f"--workdir={tmp_path / 'out'}"])
    assert code == 2
    for file, name in files.items():
        assert f"{tmp_path / file}: config.name={name!r} is no name of a folder" in one_line(err)


def test_a_comparison_and_a_run_are_told_apart(cli, compared, tmp_path):
    from tests.tiny_run import CONFIG, ROOT

    code, _, err = cli(["mmrec_jax", f"--config={ROOT}/configs/compare.py"])
    assert (code, "add --mode=compare" in err) == (2, True)
    code, _, err = cli(["mmrec_jax", "--mode=compare", f"--config={ROOT}/configs/crossan.py"])
    assert (code, "crossan is the config of one run" in err) == (2, True)
    code, _, err = cli(["mmrec_jax", f"--config={CONFIG}:x", "--seeds=0,1"])
    assert (code, "--seeds is read by --mode=compare only" in err) == (2, True)
    code, _, err = cli(["mmrec_jax", "--mode=compare"])
    assert (code, "needs either --config" in err) == (2, True)
    code, _, err = cli(["mmrec_jax", "--mode=compare", f"--configs={CONFIG}:x,{CONFIG}:y"])
    assert (code, "both named 'shop'" in err) == (2, True)
    code, _, err = cli(["mmrec_jax", "--mode=compare", f"--configs={ROOT}/configs/compare.py"])
    assert (code, "is a comparison itself" in err) == (2, True)
    code, _, err = compared(f"config.runs.a = run('{ROOT}/configs/compare.py')")[1:]
    assert (code, "runs.a: its config is a comparison" in err) == (2, True)
