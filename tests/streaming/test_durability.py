"""What is given a name that somebody follows is on the disk before: a power cut leaves what was there, or all of it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmrec_jax.errors import CheckpointError, TrainingError
from mmrec_jax.files import write_whole
from mmrec_jax.streaming.finished import FILE
from mmrec_jax.streaming.served import Served
from mmrec_jax.streaming.state import FOLDER, POSITION, StreamCheckpoints, StreamState
from mmrec_jax.streaming.versions import Versions

PARAMS = {"items": {"kernel": np.ones((2, 3), np.float32)}}


@pytest.fixture
def disk(monkeypatch):
    """Watches renames: what of the things renamed was not on the disk, and which names of directories were never."""
    synced: dict[int, tuple[int, int]] = {}
    lost, renamed = [], []
    fsync, rename, replace = os.fsync, Path.rename, os.replace

    def state(path):
        status = os.stat(path)
        return status.st_size if os.path.isfile(path) else 0, status.st_mtime_ns

    def noting(handle):
        synced[os.fstat(handle).st_ino] = state(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def checked(source, target):
        source, target = Path(source), Path(target)
        if "removed" not in target.name and not source.is_symlink() and "orbax" not in str(source):
            below = [path for path in (source, *source.rglob("*")) if not path.is_symlink()]
            lost.extend(path for path in below if synced.get(path.stat().st_ino) != state(path))
            renamed.append(target)

    def of_path(self, target):
        checked(self, target)
        return rename(self, target)

    def of_os(source, target, **kwargs):
        checked(source, target)
        return replace(source, target, **kwargs)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(os, "replace", of_os)
    monkeypatch.setattr(Path, "rename", of_path)
    monkeypatch.setattr(Path, "replace", of_path)
    yield renamed, lost
    assert not lost
    assert all(synced.get(target.parent.stat().st_ino) == state(target.parent) for target in renamed)


def events(window: int) -> pl.DataFrame:
    return pl.DataFrame({"user": ["ann", "bob"], "item": ["i1", f"i{window}"], "time": [window, window]})


def test_a_small_file(disk, tmp_path):
    write_whole(tmp_path / "a.json", "{}")
    assert disk[0] == [tmp_path / "a.json"]


def test_what_is_served(disk, tmp_path):
    items = pl.DataFrame({"item": ["i1", "i2"], "title": ["one", "two"]})
    Served.empty().after(1, events(1), items).write(tmp_path, "f", "title")
    assert tmp_path / "served" / "000001" in disk[0]


def test_a_version(disk, tmp_path):
    Versions(tmp_path).promote(3, PARAMS, {}, reason="better", documents={"a.json": {}}, links={"data": "../.."})
    assert disk[0] == [tmp_path / "versions" / "0003", tmp_path / "versions" / "service.json"]


def report(window: int) -> dict:
    return {"window": window, "name": f"w{window}", "events": 10 * window, "test": {"metrics": list(range(200))}}


def states(windows: int) -> list[StreamState]:
    """A stream's state after each of three phases of its windows."""
    found = []
    for window in range(1, windows + 1):
        for phase in ("train", "test", "prune"):
            last = window + (phase != "train")
            reports = [report(number) for number in range(1, window + 1)]
            reports = [{**each, "phase": "prune"} for each in reports[:-1]] + [{**reports[-1], "phase": phase}]
            seen = [[f"w{number}", 10 * number] for number in range(1, last + 1)]
            found.append(StreamState(window=last, phase=phase, seen=seen, reports=reports))
    return found


def saved(workdir: Path, those: list[StreamState], changed=lambda state: True) -> None:
    """Saves states, with other parameters than before where they are `changed`."""
    checkpoints = StreamCheckpoints(workdir, {})
    params = PARAMS
    for state in those:
        params = dict(PARAMS) if changed(state) else params
        checkpoints.save(state, params)
    checkpoints.close()


def loaded(workdir: Path) -> StreamState:
    checkpoints = StreamCheckpoints(workdir, {})
    try:
        return checkpoints.load()[0]
    finally:
        checkpoints.close()


def test_a_finished_report_is_written_once_and_found_again_with_the_position(tmp_path):
    for count in (1, 3, 4, 9):
        path = tmp_path / str(count)
        saved(path, states(3)[:count])
        assert loaded(path) == states(3)[count - 1]
    lines = (tmp_path / "9" / FOLDER / FILE).read_text().splitlines()
    assert [json.loads(line)["window"] for line in lines] == [1, 2]  # the third is not finished
    assert {json.loads(line)["phase"] for line in lines} == {"prune"}  # as they were last


def test_parameters_that_a_phase_leaves_alone_are_not_written_again(tmp_path):
    own = states(3)
    for count in range(1, 10):
        path = tmp_path / str(count)
        saved(path, own[:count], changed=lambda state: state.phase != "test")
        assert loaded(path) == own[count - 1]
    steps = sorted(int(folder.name[5:]) for folder in (tmp_path / "8" / FOLDER).glob("step_*"))
    assert steps == [17, 19]  # the second window pruned before the third, and the third trained; then it was tested


def test_a_position_counts_for_the_checkpoint_alone_that_it_was_written_after(tmp_path):
    own = states(2)
    saved(tmp_path, own[:2], changed=lambda state: state.phase == "train")
    newest = tmp_path / FOLDER / "step_9"
    assert newest.is_dir()
    checkpoints = StreamCheckpoints(tmp_path, {})
    checkpoints.load()
    checkpoints.save(own[2], dict(PARAMS))
    checkpoints.save(own[3], dict(PARAMS))
    checkpoints.close()
    assert loaded(tmp_path) == own[3]
    (tmp_path / FOLDER / POSITION).write_text('{"of_st')
    with pytest.raises(CheckpointError, match=r"position\.json is damaged"):
        loaded(tmp_path)


@pytest.mark.parametrize("writes", ["position.json", "finished.jsonl"])
def test_a_full_disk_is_told_and_what_was_saved_is_as_it_was(tmp_path, monkeypatch, writes):
    own = states(2)
    count = 1 if writes == "position.json" else 3  # the next state is after a test; or it is of a second window
    saved(tmp_path, own[:count])
    checkpoints = StreamCheckpoints(tmp_path, {})
    params = checkpoints.load()[1]

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TrainingError, match="the disk is full"):
        checkpoints.save(own[count], params)
    monkeypatch.undo()
    checkpoints.close()
    assert loaded(tmp_path) == own[count - 1]
    assert not [path for path in (tmp_path / FOLDER).iterdir() if path.name.startswith(".")]


def test_a_checkpoint_does_not_grow_with_the_stream(tmp_path):
    sizes = []
    for windows in (2, 8):
        saved(tmp_path / str(windows), states(windows))
        newest = max((tmp_path / str(windows) / FOLDER).glob("step_*"), key=lambda path: int(path.name[5:]))
        sizes.append((newest / "manifest" / "metadata").stat().st_size)
    assert sizes[1] < sizes[0] + 20


def test_a_kill_between_the_report_and_the_checkpoint_that_counts_on_it_changes_nothing(tmp_path):
    own = states(3)
    saved(tmp_path, own[:3])
    path = tmp_path / FOLDER / FILE
    path.write_text(json.dumps(own[-1].reports[0]) + "\n" + '{"window": 2, "na')
    assert loaded(tmp_path) == own[2]
    saved(tmp_path / "again", own[:3])
    checkpoints = StreamCheckpoints(tmp_path, {})
    checkpoints.load()
    for state in own[3:]:
        checkpoints.save(state, PARAMS)
    checkpoints.close()
    assert loaded(tmp_path) == own[-1]


def test_finished_reports_that_are_gone_are_an_error_that_says_so(tmp_path):
    saved(tmp_path, states(3))
    (tmp_path / FOLDER / FILE).write_text("")
    with pytest.raises(CheckpointError, match="has not the reports of the 2 windows"):
        loaded(tmp_path)
