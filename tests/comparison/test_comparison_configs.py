"""The comparisons of `configs/` run to their tables on a shrunken scale, and the command line with real processes."""

from __future__ import annotations

import json
import subprocess

import pytest

from mmrec_jax.comparison import jobs
from tests.comparison.conftest import Ended
from tests.tiny_run import CONFIG, ROOT, subprocess_of

SMALL = (
    "training.epochs=1",
    "training.batch_size=256",
    "model.width=8",
    "model.length=5",
    "model.window=last",
    "user.blocks=1",
    "training.learning_curve=False",
)
LAYERS = ("modalities.overview.layers=(2,6)", "modalities.poster.layers=(4,12)")


def of_sample(name, tmp_path, *settings):
    flags = [f"--workdir={tmp_path / 'run'}", f"--config.settings={(*SMALL, *settings)}"]
    return ["mmrec_jax", "--mode=compare", f"--config={ROOT}/configs/{name}.py:smoke", *flags]


@pytest.mark.long
def test_the_stages_of_the_sample_run_to_their_table(begun, cli, tmp_path):
    code, out, err = cli(of_sample("staged", tmp_path, *LAYERS))
    assert code == 0, err
    content = json.loads((tmp_path / "run/comparison.json").read_text())
    assert len(content["rows"]) == 4
    assert len(begun) == 3  # both methods begin with the same stage
    assert all("NDCG@10" in row["metrics"] for row in content["rows"])
    assert not (tmp_path / "run/store").exists()  # the sample has its own
    assert "TPME" in out


def test_the_methods_of_the_sample_come_as_far_as_their_trainings(monkeypatch, cli, tmp_path):
    # Each of the configs is trained by tests/modes/test_configs.py.
    started = []

    def start(job):
        started.append(job.title)
        job.log.write_text("RuntimeError: not here")
        return Ended(1)

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(jobs, "_POLL", 0)
    code, _, err = cli(of_sample("compare", tmp_path))
    assert code == 2
    assert f"{len(started)} jobs failed; there is nothing to compare" in err
    assert {"crossan, seed 0", "crossan_text, seed 0", "iisan, seed 0", "sasrec, seed 0"} <= set(started)


def test_three_modalities_come_as_far_as_the_extraction_that_all_share(monkeypatch, cli, shop, tmp_path):
    started = []

    def start(job):
        started.append(job.title)
        job.log.write_text("RuntimeError: not here")
        return Ended(1)

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(jobs, "_POLL", 0)
    settings = (
        f"data.source={shop / 'data'}",
        "data.interactions_file=interactions.csv",
        "evaluation.ks=(10,)",
        "modalities.title.template={title}",
        "modalities.overview.template={about}",
        "modalities.poster.path_template={picture}",
    )
    flags = [f"--workdir={tmp_path}", f"--config.settings={settings}"]
    code, _, err = cli(["mmrec_jax", "--mode=compare", f"--config={ROOT}/configs/staged.py:movielens,smoke", *flags])
    made = ("title", "overview", "poster")
    assert (code, started) == (2, [f"hidden states of {name} in {tmp_path / 'store'}" for name in made])
    for row in ("crossan 3: +poster", "sum 2: +overview", "iisan 2: title+poster", "continued 3: the same again"):
        assert f"{row}, seed 0" in err


@pytest.mark.long
def test_runs_are_processes_of_their_own(shop, trained, tmp_path):
    argv = ["mmrec_jax", "--mode=compare", f"--configs={CONFIG}:{shop}", "--seeds=3", f"--workdir={tmp_path}"]
    process = subprocess_of(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    for number, name in enumerate(("picture", "words"), start=1):
        assert f"{number}/3 hidden states of {name} in {tmp_path / 'store'}: " in out, out
    assert "3/3 shop, seed 3: " in out
    assert "about 0:00:" in out  # left after the first
    (row,) = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert (row["seeds"], row["tpme"], row["differences"]) == ([3], 0, {})
    # A process with JAX in it, and not the one that started it.
    assert 50 * 2**20 < row["cost"]["peak_memory_bytes"] < 2**30
