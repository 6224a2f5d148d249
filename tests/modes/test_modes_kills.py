"""A run of the command line that is killed with SIGKILL and started again ends as an undisturbed one."""

from __future__ import annotations

import json
import random
import subprocess
import time

import pytest

from mmrec_jax.main import PREEMPTED
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


@pytest.mark.long
def test_killed_at_random_moments_through_the_command_line_ends_bit_for_bit_the_same(shop, trained, tmp_path, cli):
    store = f"--config.store={trained / 'store'}"

    def start(workdir):
        return subprocess_of(arguments(shop, workdir, *LONGER, store, only="words"), stdout=subprocess.DEVNULL)

    def kill_after(process, path, delay):
        while process.poll() is None and not path.exists():
            time.sleep(0.005)
        time.sleep(delay)
        running = process.poll() is None
        process.kill()
        process.wait()
        return running

    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    assert cli(arguments(shop, undisturbed, *LONGER, store, only="words"))[0] == 0
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


@pytest.mark.long
def test_a_run_that_is_told_to_end_saves_at_the_next_step_and_the_same_command_goes_on(shop, trained, tmp_path, cli):
    """Checkpoints are at the ends of epochs otherwise."""
    told, undisturbed = tmp_path / "told", tmp_path / "undisturbed"
    flags = (
        f"--config.store={trained / 'store'}",
        "--config.training.epochs=25",
        "--config.training.patience=0",
        "--config.training.eval_from=25",
        "--config.training.batch_size=4",
        "--config.training.learning_curve=False",
        "--config.baselines=()",
        "--config.show_users=0",
    )
    process = subprocess_of(
        arguments(shop, told, *flags, only="words"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None and not list(told.glob("checkpoints/step_*0")):
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.2))
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == PREEMPTED
    step = load_params(told, "last")[1]["progress"]["step"]
    assert f"ended after step {step}, which is saved" in said.decode()
    for folder in (told, undisturbed):
        assert cli(arguments(shop, folder, *flags, only="words"))[0] == 0
    last = [load_params(folder, "last")[1]["checksums"] for folder in (told, undisturbed)]
    assert last[0] == last[1]
    assert (told / "metrics.csv").read_text() == (undisturbed / "metrics.csv").read_text()
