"""A stream is lived through window by window; killed between any two phases it ends with the same bits."""

from __future__ import annotations

import copy
import itertools
import os
import signal

import pytest

from mmrec_jax.errors import CheckpointError, Preempted
from mmrec_jax.parallel.preemption import REQUEST, StopRequest
from mmrec_jax.streaming.protocol import StreamRun
from mmrec_jax.streaming.state import StreamCheckpoints
from mmrec_jax.training.manifest import checksums
from mmrec_jax.training.trees import host_copy
from tests.streaming.conftest import learner, settings

PLAIN = settings(only="words")
CLOCK = ("seconds", "recompilations")


def lived(config, workdir, windows, promotion=None, last=4):
    """The stream's run, its reports and final parameters' checksums."""
    own = learner(config, workdir)
    own.foresee(windows)
    stream = StreamRun(own, promotion, say=lambda line: None)
    try:
        reports = stream.run(windows, last=last)
    finally:
        stream.close()
    return stream, reports, checksums(host_copy(stream.params))


def timeless(reports):
    """Reports without what depends on the clock."""
    found = copy.deepcopy([{key: value for key, value in report.items() if key not in CLOCK} for report in reports])
    for report in found:
        for key in ("seconds", "step_seconds", "peak_memory_bytes"):
            report["training"].pop(key, None)
    return found


@pytest.fixture(scope="module")
def undisturbed(windows, tmp_path_factory):
    return lived(PLAIN, tmp_path_factory.mktemp("stream"), windows[:3], last=3)


def test_each_window_but_the_last_is_trained_and_tested_on_the_next(undisturbed):
    _, reports, _ = undisturbed
    assert [report["window"] for report in reports] == [1, 2]
    assert [report["test"]["window"] for report in reports] == [2, 3]
    assert [report["test"]["users"] for report in reports] == [24, 24]
    assert [report["test"]["items"] for report in reports] == [26, 33]  # new items are ranked too
    assert [sorted(report["held_out"]) for report in reports] == [["1"], ["1", "2"]]
    assert all(report["training"]["epochs"] == 2 for report in reports)


def test_a_report_tells_what_lists_and_slices_were_asked_for(undisturbed, windows):
    _, reports, _ = undisturbed
    tested = reports[0]["test"]
    assert 0 < tested["lists"]["Coverage@5"] <= tested["lists"]["Coverage@10"] <= 1
    # An item that no window before had is new.
    last = windows[1].events.group_by("user", maintain_order=True).last()["item"]
    new = int((~last.is_in(windows[0].events["item"].unique().to_list())).sum())
    assert tested["slices"]["popularity"]["new"]["count"] == new > 0
    assert sum(group["count"] for group in tested["slices"]["history"].values()) == tested["examples"]
    assert all("slices" not in held and "lists" not in held for held in reports[1]["held_out"].values())


def test_nothing_is_compiled_after_the_first_window(undisturbed):
    _, reports, _ = undisturbed
    assert reports[0]["recompilations"] > 0
    assert reports[1]["recompilations"] == 0


def test_nothing_is_compiled_after_the_first_window_of_a_stream_that_is_not_known_beforehand(windows, tmp_path):
    own = learner(settings(only="words", **{"stream.context": "all", "training.epochs": 1}), tmp_path)
    stream = StreamRun(own, say=lambda line: None)
    reports = stream.run(windows)  # users that come again have had four times as many items in the end
    stream.close()
    assert [report["recompilations"] for report in reports[1:]] == [0, 0, 0]


def test_killed_between_phases_it_ends_with_the_same_bits(windows, undisturbed, tmp_path, monkeypatch):
    saves = []
    save = StreamCheckpoints.save

    def killed(self, state, params):
        save(self, state, params)
        saves.append((state.window, state.phase))
        if saves[-1] in ((2, "prune"), (3, "test")):
            raise KeyboardInterrupt

    monkeypatch.setattr(StreamCheckpoints, "save", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            lived(PLAIN, tmp_path, windows[:3], last=3)
    stream, reports, params = lived(PLAIN, tmp_path, windows[:3], last=3)
    assert params == undisturbed[2]
    assert stream.learner.sizes == undisturbed[0].learner.sizes  # other sizes would round sums otherwise
    assert timeless(reports) == timeless(undisturbed[1])
    assert len(set(saves)) == len(saves)  # nothing is done twice


LADDER = settings(
    "xsmoe",
    only="words",
    **{
        "fusion.kind": "add",
        "model.experts": 2,
        "model.capacity": 3,
        "training.checkpoint_every_steps": 3,
        "stream.threshold": 0.9,  # the less used one of two is taken away
    },
)


@pytest.fixture(scope="module")
def ladder(windows, tmp_path_factory):
    return lived(LADDER, tmp_path_factory.mktemp("ladder"), windows[:3], last=3)


@pytest.mark.long
def test_a_ladder_that_is_killed_between_pruning_growth_and_steps_ends_with_the_same_bits(
    ladder, windows, tmp_path, monkeypatch
):
    assert [len(ladder[1][0][what]) for what in ("pruned", "born")] == [2, 2]
    saves, steps = [], itertools.count(1)
    save, boundary = StreamCheckpoints.save, StopRequest.boundary

    def killed(self, state, params):
        save(self, state, params)
        saves.append((state.window, state.phase))
        if saves[-1] in ((2, "prune"), (2, "expand")):
            raise KeyboardInterrupt

    def killed_in_a_step(self):
        if (2, "expand") in saves and next(steps) == 5:
            raise KeyboardInterrupt
        return boundary(self)

    monkeypatch.setattr(StreamCheckpoints, "save", killed)
    monkeypatch.setattr(StopRequest, "boundary", killed_in_a_step)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            lived(LADDER, tmp_path, windows[:3], last=3)
    assert saves[-1] == (2, "expand")
    assert (tmp_path / "windows" / "0002" / "checkpoints" / "step_3").is_dir()
    _, reports, params = lived(LADDER, tmp_path, windows[:3], last=3)
    assert next(steps) > 6
    assert params == ladder[2]
    assert timeless(reports) == timeless(ladder[1])


def test_told_to_end_during_a_training_it_saves_at_the_next_step_and_goes_on(
    windows, undisturbed, tmp_path, monkeypatch
):
    first, passed, boundary = undisturbed[1][0]["training"]["steps"], itertools.count(1), StopRequest.boundary

    def told(self):
        if next(passed) == first + 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return boundary(self)

    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "boundary", told)
        with REQUEST.heard(), pytest.raises(Preempted, match="after step 2, which is saved"):
            lived(PLAIN, tmp_path, windows[:3], last=3)
    _, reports, params = lived(PLAIN, tmp_path, windows[:3], last=3)
    assert params == undisturbed[2]
    assert timeless(reports) == timeless(undisturbed[1])


def test_a_finished_stream_is_only_remembered(windows, undisturbed):
    stream, reports, params = lived(PLAIN, undisturbed[0].learner.workdir, windows[:3], last=3)
    assert (reports, params) == (undisturbed[1], undisturbed[2])
    assert not (stream.learner.folder(1) / "checkpoints").exists()


def test_other_data_under_the_same_number_is_refused(windows, undisturbed):
    changed = [*windows[:1], type(windows[1])(2, "w2", windows[1].events[:-3]), windows[2]]
    with pytest.raises(CheckpointError, match="window 2 was 'w2' with 192 events, and is 'w2' with 189"):
        lived(PLAIN, undisturbed[0].learner.workdir, changed, last=3)
