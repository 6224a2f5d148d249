"""A run of several processes: what it leaves, and that killing, stopping and another number of them change nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from mmrec_jax.training import load_params
from mmrec_jax.training.trees import named_leaves
from tests.tiny_run import ROOT, arguments

FLAGS = (
    "--config.training.epochs=6",
    "--config.training.patience=0",
    "--config.training.eval_from=6",
    "--config.training.checkpoint_every_steps=2",
    "--config.training.batch_size=8",
    "--config.training.learning_curve=False",
    "--config.baselines=()",
    "--config.show_users=0",
    "--config.parallel.timeout_seconds=60",
)


def start(shop, workdir, store, count):
    """The run in so many processes; each is a group of its own, with the script that started it."""
    flags = arguments(shop, workdir, *FLAGS, f"--config.store={store}", only="words")[1:]
    command = [
        "bash",
        str(ROOT / "launch" / "local_multiprocess.sh"),
        str(count),
        f"--logs={workdir}.logs",
        "--",
        *flags,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process):
    """Process ids of what a script has started, in order."""
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in listed if "mmrec_jax.main" in Path(f"/proc/{pid}/cmdline").read_text()]


def wait_for_a_checkpoint(process, workdir):
    while process.poll() is None and not list(workdir.glob("checkpoints/step_*[0-9]")):
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))


@pytest.fixture(scope="module")
def alone(shop, trained, tmp_path_factory):
    """The run in one process."""
    workdir = tmp_path_factory.mktemp("alone") / "shop"
    process = start(shop, workdir, trained / "store", 1)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    return workdir


def check_equal(workdir, alone):
    """The same steps, each taken once, to the same parameters and metrics."""
    here, there = (load_params(folder, "last") for folder in (workdir, alone))
    progress = here[1]["progress"]
    assert progress["step"] == progress["stream"]["step"] == 6 * progress["batches_per_epoch"]
    assert [entry["epoch"] for entry in progress["history"]] == [1, 2, 3, 4, 5, 6]
    expected = named_leaves(there[0])
    for name, leaf in named_leaves(here[0]).items():
        # Sums over devices are in another order; Adam divides small differences of small gradients by small numbers.
        np.testing.assert_allclose(leaf, expected[name], rtol=2e-3, atol=2e-5, err_msg=name)
    rows = [(folder / "metrics.csv").read_text().splitlines() for folder in (workdir, alone)]
    assert [row.rsplit(",", 1)[0] for row in rows[0]] == [row.rsplit(",", 1)[0] for row in rows[1]]
    values = [[float(row.rsplit(",", 1)[1]) for row in part[1:] if ",train" in row] for part in rows]
    np.testing.assert_allclose(*values, rtol=1e-4)
    results = [
        json.loads((folder / "results.json").read_text())["models"]["shop"]["test"] for folder in (workdir, alone)
    ]
    assert results[0]["examples"] == results[1]["examples"]
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "again"), [(2, 2)])
def test_a_process_that_is_killed_ends_all_and_the_run_goes_on_in_another_number(
    shop, trained, alone, tmp_path, count, again
):
    workdir = tmp_path / "shop"
    process = start(shop, workdir, trained / "store", count)
    wait_for_a_checkpoint(process, workdir)
    victim = random.randrange(count)
    pids = children(process)
    if victim < len(pids):
        os.kill(pids[victim], signal.SIGKILL)
    _, said = process.communicate(timeout=90)
    if victim and process.returncode == 137:
        assert f"process {victim} (" in said
    process = start(shop, workdir, trained / "store", again)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    check_equal(workdir, alone)
