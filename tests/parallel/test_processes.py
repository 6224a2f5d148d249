"""A run of several processes: what it trains, and that killing, stopping and another number of them change nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mmrec_jax.training import load_params
from mmrec_jax.training.trees import named_leaves
from tests.parallel.recorded import Attempt, read, trained
from tests.tiny_run import ROOT, arguments

KILLED, TOLD, LEFT = "kill -9 of one", "SIGTERM to all", "left alone"
EPOCHS, BATCH = 8, 8
FLAGS = (
    f"--config.training.epochs={EPOCHS}",
    "--config.training.patience=0",
    f"--config.training.eval_from={EPOCHS}",
    "--config.training.checkpoint_every_steps=4",
    f"--config.training.batch_size={BATCH}",
    "--config.training.learning_curve=False",
    "--config.evaluation.bootstrap=0",
    "--config.evaluation.slices=False",
    "--config.baselines=()",
    "--config.show_users=0",
    "--config.parallel.timeout_seconds=60",
)
# In place of `python`, for the script that starts the processes.
PYTHON = """#!/bin/bash
[[ $1 != - ]] || exec {python} -
exec {python} -m tests.parallel.recorded "$RECORDS/$$" "${{@:3}}"
"""


@pytest.fixture(autouse=True)
def _drawn():
    """Moments and plans are drawn; a failure shows the number to draw them from again, by SEED=N in the environment."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**9))
    print(f"SEED={seed}")
    random.seed(seed)


class Runs:
    """One run, started again and again.

    Attributes:
        attempts: what each start trained.
        victim: number of the process that was killed last.
        seen: step of the last checkpoint before processes were ended.
    """

    def __init__(self, shop: Path, workdir: Path):
        self.workdir = workdir
        self.attempts: list[Attempt] = []
        self.victim, self.seen = -1, 0
        self._flags = arguments(shop, workdir, *FLAGS, only="ids")[1:]
        (workdir.parent / "bin").mkdir()
        shim = workdir.parent / "bin" / "python"
        shim.write_text(PYTHON.format(python=sys.executable))
        shim.chmod(0o755)

    def start(self, count: int, end: str = LEFT) -> tuple[int, str, str]:
        """Starts so many processes and ends them: exit code, and what the script that started them printed."""
        records = self.workdir.parent / f"records_{len(self.attempts)}"
        records.mkdir()
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{self.workdir.parent / 'bin'}:{os.environ['PATH']}",
            "RECORDS": str(records),
        }
        script = str(ROOT / "launch" / "local_multiprocess.sh")
        command = ["bash", script, str(count), f"--logs={self.logs}", "--", *self._flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as process:
            try:
                self._end(process, count, end, records)
                out, said = process.communicate(timeout=150)
            finally:
                for pid in _children(process):
                    os.kill(pid, signal.SIGKILL)
        self.attempts.append(read(records))
        return process.returncode, out, said

    @property
    def logs(self) -> Path:
        """What all processes but the first printed."""
        return self.workdir.parent / "logs"

    def steps(self) -> list[int]:
        """Of the checkpoints."""
        names = [path.name.removeprefix("step_") for path in self.workdir.glob("checkpoints/step_*")]
        return sorted(int(name) for name in names if name.isdigit())

    def _end(self, process: subprocess.Popen, count: int, end: str, records: Path) -> None:
        if end == LEFT:
            return
        moment = random.randrange(1, 10)
        while process.poll() is None and max(map(_lines, records.iterdir()), default=0) < moment:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.03))
        self.seen = max(self.steps(), default=0)
        if end == TOLD:
            process.terminate()
        else:
            self.victim = random.randrange(count)
            os.kill(_children(process)[self.victim], signal.SIGKILL)


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def _children(process: subprocess.Popen) -> list[int]:
    """Process ids of what a script has started and is not gone, in order."""
    if process.poll() is not None:
        return []
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in listed if "recorded" in Path(f"/proc/{pid}/cmdline").read_text()]


@pytest.fixture(scope="module")
def alone(shop, tmp_path_factory) -> Runs:
    """The run in one process, left alone."""
    runs = Runs(shop, tmp_path_factory.mktemp("alone") / "shop")
    code, _, said = runs.start(1)
    assert code == 0, said
    return runs


def check_equal(runs: Runs, alone: Runs):
    """The same steps to the same parameters and metrics."""
    here, there = (load_params(part.workdir, "last") for part in (runs, alone))
    progress = here[1]["progress"]
    assert progress["step"] == progress["stream"]["step"] == EPOCHS * progress["batches_per_epoch"]
    assert [entry["epoch"] for entry in progress["history"]] == list(range(1, EPOCHS + 1))
    expected = named_leaves(there[0])
    for name, leaf in named_leaves(here[0]).items():
        # Sums over devices are in another order; Adam divides small differences of small gradients by small numbers.
        np.testing.assert_allclose(leaf, expected[name], rtol=2e-3, atol=2e-5, err_msg=name)
    rows = [(part.workdir / "metrics.csv").read_text().splitlines() for part in (runs, alone)]
    assert [row.rsplit(",", 1)[0] for row in rows[0]] == [row.rsplit(",", 1)[0] for row in rows[1]]
    values = [[float(row.rsplit(",", 1)[1]) for row in part[1:] if ",train" in row] for part in rows]
    np.testing.assert_allclose(*values, rtol=1e-4)
    results = [
        json.loads((part.workdir / "results.json").read_text())["models"]["shop"]["test"] for part in (runs, alone)
    ]
    assert results[0]["examples"] == results[1]["examples"]
    assert results[0]["metrics"] == pytest.approx(results[1]["metrics"], abs=1e-6)


def check_trained(runs: Runs, alone: Runs):
    """What was trained, by the users that were on the processes' devices: each once in an epoch, in the same steps."""
    steps = trained(runs.attempts)
    per_epoch = load_params(alone.workdir, "last")[1]["progress"]["batches_per_epoch"]
    assert sorted(steps) == list(range(EPOCHS * per_epoch))
    everyone = trained(alone.attempts)
    for epoch in range(EPOCHS):
        users = [u for step in range(epoch * per_epoch, (epoch + 1) * per_epoch) for u in steps[step].values()]
        real = [user for user in users if user >= 0]
        assert len(users) == per_epoch * BATCH
        assert sorted(real) == sorted(set(real)) == list(range(40))
    assert steps == everyone


def go_on(runs: Runs, count: int, end: str) -> None:
    """Starts processes that go on from the last checkpoint, and ends them in the middle."""
    saved = max(runs.steps(), default=0)
    code, _, said = runs.start(count, end)
    attempt = runs.attempts[-1]
    assert attempt.first == saved
    if end == TOLD:
        assert code == 75, said
        # Ended after the same step by all, which is saved: nothing that was trained is lost.
        assert f"ended after step {attempt.last + 1}, which is saved" in said
        assert max(runs.steps()) == attempt.last + 1
        return
    assert code == 137, said
    assert max(runs.steps(), default=0) >= runs.seen  # what was there before is there after the kill
    logs = {index: (runs.logs / f"process_{index}.log").read_text() for index in range(1, count)} | {0: said}
    for index in logs.keys() - {runs.victim}:
        assert f"process {runs.victim} (" in logs[index]


@pytest.mark.long
def test_killed_told_to_end_and_started_in_other_numbers_a_run_trains_each_user_once_an_epoch(shop, alone, tmp_path):
    runs = Runs(shop, tmp_path / "shop")
    go_on(runs, 2, KILLED)
    go_on(runs, 4, TOLD)
    code, _, said = runs.start(1)
    assert code == 0, said
    check_trained(runs, alone)
    check_equal(runs, alone)


@pytest.mark.long
@pytest.mark.parametrize("number", range(4))
def test_any_sequence_of_ends_and_numbers_of_processes_is_the_same_run(shop, alone, tmp_path, number):
    runs = Runs(shop, tmp_path / "shop")
    plan = [(random.choice((1, 2, 4)), random.choice((KILLED, TOLD))) for _ in range(2)]
    print(plan)
    for count, end in plan:
        go_on(runs, count, end)
    last = (2, 4)[number % 2]
    code, out, said = runs.start(last)
    assert code == 0, (plan, said)
    assert "NDCG" in out
    for index in range(1, last):
        assert "NDCG" not in (runs.logs / f"process_{index}.log").read_text()
    check_trained(runs, alone)
    check_equal(runs, alone)
