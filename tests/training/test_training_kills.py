"""A run that is killed with SIGKILL and started again ends with the bits of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmrec_jax.training import load_params
from mmrec_jax.training.manifest import checksums

PROGRAM = Path(__file__).parent / "toy.py"
SETTINGS = {"epochs": 5, "checkpoint_every_steps": 2, "ema_decay": 0.9, "clip_norm": 1.0, "patience": 0}


def start(workdir: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])}
    return subprocess.Popen([sys.executable, str(PROGRAM), str(workdir), json.dumps(SETTINGS)], env=environment)


def kill_while_saving(process: subprocess.Popen, workdir: Path, delay: float) -> bool:
    """Kills `delay` seconds after the directory of an unfinished checkpoint appears; False if there was none."""
    seen = set(workdir.glob("checkpoints/*tmp*"))  # left by an earlier kill
    while process.poll() is None:
        if set(workdir.glob("checkpoints/*tmp*")) - seen:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
    return False


def kill_after_first_change(process: subprocess.Popen, workdir: Path, delay: float) -> bool:
    """Kills `delay` seconds after the run wrote its first row of metrics; False if the run ended first."""
    csv = workdir / "metrics.csv"
    before = csv.stat().st_mtime_ns if csv.exists() else 0
    while process.poll() is None:
        if csv.exists() and csv.stat().st_mtime_ns != before:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.001)
    return False


def outcome(workdir: Path) -> dict:
    last, manifest = load_params(workdir, "last")
    position = {k: v for k, v in manifest["progress"].items() if k not in ("history", "epoch_seconds")}
    return {
        "summary": json.loads((workdir / "summary.json").read_text()),
        "metrics.csv": (workdir / "metrics.csv").read_text(),
        "last": checksums(last),
        "optimiser": manifest["checksums"],
        "position": position,
        "steps": sorted(path.name for path in (workdir / "checkpoints").glob("step_*")),
    }


@pytest.mark.long
def test_killed_at_random_moments_and_while_saving_ends_bit_for_bit_the_same(tmp_path):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert start(undisturbed).wait() == 0

    moments = random.Random()
    kills = [
        (kill_while_saving, 0.0),
        (kill_after_first_change, moments.uniform(0, 0.3)),
        (kill_while_saving, moments.uniform(0, 0.02)),
        (kill_after_first_change, moments.uniform(0, 0.3)),
        (kill_while_saving, moments.uniform(0, 0.1)),
    ]
    killed = []
    for kill, delay in kills:
        process = start(disturbed)
        if not kill(process, disturbed, delay):
            assert process.returncode == 0
            break
        killed.append((kill.__name__, delay))
    assert len(killed) >= 3, f"the run ended too soon to be killed often enough: {killed}"
    assert start(disturbed).wait() == 0
    assert outcome(disturbed) == outcome(undisturbed), killed
    assert not list((disturbed / "checkpoints").glob("*tmp*"))
