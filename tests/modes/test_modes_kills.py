"""A run of the command line that is killed with SIGKILL and started again ends as an undisturbed one."""

from __future__ import annotations

import json
import random
import subprocess
import time

import pytest

from mmrec_jax.training import load_params
from mmrec_jax.training.manifest import checksums
from tests.tiny_run import arguments, subprocess_of

LONGER = (
    "--config.training.epochs=12",
    "--config.training.checkpoint_every_steps=2",
    "--config.training.learning_curve=False",
    "--config.show_users=0",
)


def outcome(workdir):
    """Everything of a run that does not depend on the clock."""
    content = json.loads((workdir / "results.json").read_text())
    models = {
        name: {k: v for k, v in part["test"].items() if k != "seconds"} for name, part in content["models"].items()
    }
    places = (workdir, workdir / "baselines" / "sasrec")
    return {
        "models": models,
        "differences": content["differences"],
        "best": [checksums(load_params(place)[0]) for place in places],
        "last": [checksums(load_params(place, "last")[0]) for place in places],
        "metrics": [(place / "metrics.csv").read_text() for place in places],
        "best_step": [part["training"].get("best_step") for part in content["models"].values()],
    }


@pytest.mark.slow
def test_killed_at_random_moments_through_the_command_line_ends_bit_for_bit_the_same(shop, trained, tmp_path):
    store = f"--config.store={trained / 'store'}"
    started = {"stdout": subprocess.DEVNULL}

    def start(workdir):
        return subprocess_of(arguments(shop, workdir, *LONGER, store), **started)

    def kill_after(process, path, delay):
        while process.poll() is None and not path.exists():
            time.sleep(0.005)
        time.sleep(delay)
        running = process.poll() is None
        process.kill()
        process.wait()
        return running

    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert start(undisturbed).wait() == 0
    moments = random.Random()
    kills = [
        (disturbed / "config.json", moments.uniform(0, 2)),
        (disturbed / "checkpoints" / "step_2", moments.uniform(0, 0.5)),
        (disturbed / "baselines" / "sasrec" / "checkpoints" / "step_2", moments.uniform(0, 0.5)),
    ]
    killed = [kill_after(start(disturbed), path, delay) for path, delay in kills]
    assert sum(killed) >= 2, f"the run ended before it was killed: {kills}, {killed}"
    assert start(disturbed).wait() == 0
    assert outcome(disturbed) == outcome(undisturbed), kills
