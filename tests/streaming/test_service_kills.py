"""The service as a process of its own that is killed at random moments, SIGKILL, and started again."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from mmrec_jax.errors import CheckpointError
from mmrec_jax.streaming import served
from mmrec_jax.streaming.service import Service
from mmrec_jax.streaming.versions import FOLDER, Versions
from tests.streaming.conftest import events
from tests.streaming.test_service import numbers, serviced, write

WINDOWS = 5
SETTINGS = {"service.promote": "always", "service.forget_after": 3, "service.keep_versions": 2}
KILLS = 5
LONGEST = 60.0  # seconds that a process may take to the end


def live(workdir: str, folder: str) -> None:
    """The service, to the end of the stream."""
    serviced(Path(workdir), Path(folder), **SETTINGS).run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("killed") / "in"
    write(path, events(WINDOWS))
    return path


@pytest.fixture(scope="module")
def processes():
    """Makes processes that begin with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmrec_jax.streaming.service", "mmrec_jax.data.builder", "orbax.checkpoint"])
    first = context.Process(target=os.getpid)  # waits for the imports
    first.start()
    first.join()
    return context


def started(processes, workdir, folder):
    process = processes.Process(target=live, args=(str(workdir), str(folder)))
    process.start()
    return process


def publishing(workdir: Path) -> bool:
    """Whether a version is being made at this moment."""
    return any((workdir / FOLDER).glob(".[0-9]*"))


def served_is_sound(workdir: Path) -> bool:
    """Whether a model is in service; it must be loadable, with data that holds together."""
    versions = Versions(workdir)
    version = versions.in_service()
    if version is None:
        return False
    low = versions.parameters(version)["items"]["low"]
    assert np.isfinite(low).all()
    state = served.read(workdir)
    assert state.window >= version
    assert state.events.values.max() <= len(state.catalogue)
    return True


def found(workdir: Path, folder: Path):
    """What the stream came to, of a service that has nothing left to do."""
    own: Service = serviced(workdir, folder, **SETTINGS)
    return numbers(workdir, own, own.run())


@pytest.mark.long
def test_killed_at_random_moments_the_same_numbers_come_out_and_what_is_served_stays_loadable(
    folder, processes, tmp_path
):
    begin = time.monotonic()
    whole = started(processes, tmp_path / "whole", folder)
    whole.join(LONGEST)
    assert whole.exitcode == 0
    once = time.monotonic() - begin
    run, rng, sound, killed = tmp_path / "run", np.random.default_rng(0), 0, []
    for number in itertools.count():
        if (number >= KILLS and sound) or number == 4 * KILLS:
            break
        process = started(processes, run, folder)
        start = time.monotonic()
        # Where no life was long enough for a version yet, as on a busy machine, the next one may be longer.
        wait = rng.uniform(0.1, 0.3) * once * (1 if sound else 1.2**number)
        # Every other kill falls into a publication.
        while process.is_alive() and time.monotonic() - start < LONGEST:
            if publishing(run) if number % 2 else time.monotonic() - start > wait:
                break
            time.sleep(0.0005)
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:
            killed.append("publishing" if publishing(run) else "at random")
        sound += served_is_sound(run)
    assert killed.count("publishing") >= 1, killed
    assert len(killed) >= 3, killed
    assert sound
    last = started(processes, run, folder)
    last.join(LONGEST)
    assert last.exitcode == 0
    undisturbed, disturbed = found(tmp_path / "whole", folder), found(run, folder)
    for key, value in undisturbed.items():
        assert disturbed[key] == value, key


def test_a_roll_back_while_the_service_runs_is_never_lost(folder, processes, tmp_path):
    run, rolled = tmp_path / "run", None
    process = started(processes, run, folder)
    versions = Versions(run)
    while process.is_alive() and rolled is None:
        with contextlib.suppress(CheckpointError):  # there is none before the second
            if publishing(run):
                rolled = versions.roll_back()
        time.sleep(0.0005)
    process.join(LONGEST)
    assert process.exitcode == 0
    assert rolled is not None
    changes = versions.changes()
    place = changes.index(rolled)
    reports = found(run, folder)["reports"]
    followed = [report["window"] for report in reports if report.get("rolled_back") == rolled.number]
    # Nothing was put in service before a window was begun with the parameters that were rolled back to.
    assert place == len(changes) - 1 or changes[place + 1].version > min(followed)
