"""The comparisons of `configs/` run to their tables on a shrunken scale, and the command line with real processes."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.modes.test_configs import COMPARISONS
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


@pytest.mark.parametrize("name", sorted(COMPARISONS))
def test_a_comparison_runs_to_its_table(name, begun, cli, tmp_path):
    flags = [f"--workdir={tmp_path / 'run'}", f"--config.settings={SMALL}"]
    code, out, err = cli(["mmrec_jax", "--mode=compare", f"--config={ROOT}/configs/{name}.py:smoke", *flags])
    assert code == 0, err
    content = json.loads((tmp_path / "run/comparison.json").read_text())
    assert len(begun) == len(content["rows"]) > 2
    assert all("NDCG@10" in row["metrics"] for row in content["rows"])
    assert not (tmp_path / "run/store").exists()  # the sample has its own
    assert "TPME" in out


@pytest.mark.slow
def test_runs_are_processes_of_their_own(shop, trained, compiled, tmp_path):
    argv = ["mmrec_jax", "--mode=compare", f"--configs={CONFIG}:{shop}", "--seeds=3", f"--workdir={tmp_path}"]
    process = subprocess_of(argv, compiled, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert f"1/2 hidden states in {tmp_path / 'store'}: " in out
    assert "2/2 shop, seed 3: " in out
    assert "about 0:00:" in out  # left after the first
    (row,) = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert (row["seeds"], row["tpme"], row["differences"]) == ([3], 0, {})
    # A process with JAX in it, and not the one that started it.
    assert 50 * 2**20 < row["cost"]["peak_memory_bytes"] < 2**30
