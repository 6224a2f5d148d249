"""Checkpoints: whole or not there, damaged ones passed over, full disks survived, strangers refused."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import toy
from absl import logging as absl_logging

from mmrec_jax.errors import CheckpointError, TrainingError
from mmrec_jax.training import load_params
from mmrec_jax.training.checkpoints import Checkpoints
from mmrec_jax.training.manifest import check, checksums, completed, differences
from mmrec_jax.training.trees import named_leaves

# Orbax reads in parallel: when one read meets damaged bytes, the others end in an event loop already closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The workdir of a finished run of three epochs, each better than the one before."""
    workdir = tmp_path_factory.mktemp("finished")
    toy.train(workdir)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    """Texts of the warnings that were logged."""
    texts: list[str] = []
    monkeypatch.setattr(absl_logging, "warning", lambda text, *args: texts.append(text % args))
    return texts


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def params_at(workdir: Path, step: int) -> dict[str, int]:
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checksums(checkpoints.read(step).params)


def test_only_params_optimiser_and_running_metrics_are_saved_and_never_frozen_weights(workdir):
    step = workdir / "checkpoints" / "step_21"
    assert {path.name for path in step.iterdir() if path.is_dir()} == {"params", "state", "manifest"}
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        found = checkpoints.read(21)
    assert set(named_leaves(found.params)) == {"items/down/kernel", "users/up/kernel", "users/up/bias"}
    assert {name.split("/")[0] for name in found.state} == {"optimizer", "window"}
    assert toy.table().shape not in {np.shape(leaf) for leaf in [*found.state.values()]}


def test_the_newest_two_and_the_best_of_each_are_kept(tmp_path):
    class WorseAndWorse(toy.ToyTask):
        values = iter([0.3, 0.9, 0.8, 0.7, 0.6, 0.5])

        def validate(self, params, frozen):
            return {"score": next(self.values)}

    toy.train(tmp_path, task=WorseAndWorse(), epochs=6)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [42, 35, 14]


def damages(path: Path):
    """Ways in which one file can be damaged."""
    content = path.read_bytes()
    yield "missing", path.unlink
    yield "truncated", lambda: path.write_bytes(content[: len(content) // 2])
    if content:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]
        yield "flipped bit", lambda: path.write_bytes(flipped)


def test_whatever_is_damaged_in_the_newest_checkpoint_sound_params_are_loaded(workdir, warnings):
    sound = {step: params_at(workdir, step) for step in (14, 21)}
    passed_over = 0
    newest = workdir / "checkpoints" / "step_21"
    for path in files(newest):
        for damage, apply in damages(path):
            backup = path.read_bytes()
            apply()
            warnings.clear()
            params, manifest = load_params(workdir, "last")
            step = manifest["progress"]["step"]
            assert checksums(params) == sound[step], (path.name, damage)
            if step == 14:
                passed_over += 1
                assert "step_21" in warnings[0]
                assert "Passing over it" in warnings[0]
            path.write_bytes(backup)
    assert passed_over > len(files(newest)) / 3  # most of the others only describe what is stored


@pytest.mark.parametrize("item", ["params", "state", "manifest"])
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one_and_ends_the_same(workdir, warnings, item):
    undamaged = params_at(workdir, 21)
    largest = max(files(workdir / "checkpoints" / "step_21" / item), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size - 3)
    toy.train(workdir)
    assert "step_21 is damaged" in warnings[0]
    assert params_at(workdir, 21) == undamaged
    assert (workdir / "checkpoints" / "unreadable" / "step_21").is_dir()


def test_a_changed_digit_in_the_manifest_is_noticed(workdir, warnings):
    path = workdir / "checkpoints" / "step_21" / "manifest" / "metadata"
    path.write_text(path.read_text().replace('"taken": 21', '"taken": 22'))
    _, manifest = load_params(workdir, "last")
    assert manifest["progress"]["step"] == 14
    assert "own checksum" in warnings[0]


def test_no_sound_checkpoint_at_all_is_an_error_that_says_so(workdir):
    for path in workdir.glob("checkpoints/step_*/manifest/metadata"):
        path.write_text("{")
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        toy.train(workdir)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        load_params(workdir)


def test_a_damaged_best_checkpoint_costs_the_best_but_not_the_run(tmp_path, warnings):
    class Falling(toy.ToyTask):
        def __init__(self, values):
            super().__init__()
            self.values = iter(values)

        def validate(self, params, frozen):
            return {"score": next(self.values)}

    toy.train(tmp_path, task=Falling([0.9, 0.5, 0.4, 0.3]), epochs=4)
    for path in files(tmp_path / "checkpoints" / "step_7" / "params"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        load_params(tmp_path, "best")
    assert load_params(tmp_path, "last")[1]["progress"]["step"] == 28
    result = toy.train(tmp_path, task=Falling([0.2]), epochs=5)
    assert any("best checkpoint (step 7) is damaged" in text for text in warnings)
    assert (result.best_step, result.best_value, result.step) == (35, 0.2, 35)


def test_leftovers_of_a_killed_save_are_removed(workdir):
    leftover = workdir / "checkpoints" / "step_28.orbax-checkpoint-tmp"
    leftover.mkdir()
    (leftover / "half").write_bytes(b"x" * 100)
    load_params(workdir)
    assert leftover.is_dir(), "a reader must not touch the save of a training that is under way"
    toy.train(workdir)
    assert not leftover.exists()


def test_another_system_width_or_modality_set_is_refused_naming_each_difference(workdir):
    other = {"system": "crossan", "width": 16, "modalities": ["title"]}
    with pytest.raises(CheckpointError) as error:
        toy.train(workdir, task=toy.ToyTask(width=16), run=other)
    for difference in (
        "system: checkpoint 'toy', now 'crossan'",
        "width: checkpoint 8, now 16",
        "modalities: checkpoint '(absent)', now ['title']",
        "parameter.items/down/kernel: checkpoint 'float32[6, 8]', now 'float32[6, 16]'",
    ):
        assert difference in str(error.value)
    with pytest.raises(CheckpointError, match="width: checkpoint 8, now 16"):
        load_params(workdir, run={"width": 16})
    load_params(workdir, run={"width": 8})


def test_a_key_that_a_checkpoints_writer_did_not_know_counts_as_its_default():
    saved = {"run": {"model": {"width": 64}, "user": {"heads": 2}}}
    run = {"model": {"width": 64, "towers": ("both",)}, "user": {"heads": 2}}
    info = {"info": {"defaults": {"model": {"width": 32, "towers": ("both",)}}}}
    check(saved, run | info, None, "it")
    with pytest.raises(CheckpointError, match=r"model.towers"):
        check(saved, run, None, "it")
    with pytest.raises(CheckpointError, match=r"model.towers: checkpoint \['both'\], now \['one'\]"):
        check(saved, run | info | {"model": {"width": 64, "towers": ("one",)}}, None, "it")
    with pytest.raises(CheckpointError, match=r"model.width: checkpoint 64, now 32"):
        check(saved, run | info | {"model": {"width": 32, "towers": ("both",)}}, None, "it")


def test_another_seed_or_stream_is_another_run(workdir):
    with pytest.raises(CheckpointError, match="seed was 0 and is now 1"):
        toy.train(workdir, seed=1)
    with pytest.raises(CheckpointError, match="batches_per_epoch was 7 and is now 9"):
        toy.train(workdir, stream=toy.ToyStream(batches_per_epoch=9))


def test_other_optimiser_settings_warn_or_are_refused(workdir, warnings):
    toy.train(workdir, epochs=4, learning_rate=2e-2)
    assert "learning_rate: checkpoint 0.01, now 0.02" in warnings[0]
    with pytest.raises(CheckpointError, match="optimiser state is of other settings"):
        toy.train(workdir, epochs=5, schedule="cosine")


def test_best_and_last_are_different_parameters_and_best_is_the_moving_average(tmp_path):
    result = toy.train(tmp_path, ema_decay=0.9)
    best, manifest = load_params(tmp_path)
    assert manifest["progress"]["step"] == result.best_step
    assert checksums(best) == checksums(result.params)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        stored = checkpoints.read(result.best_step)
    assert checksums(best) == checksums(stored.average)
    assert checksums(best) != checksums(stored.params)


def test_loading_from_nowhere_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        load_params(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        load_params(tmp_path)
    with pytest.raises(CheckpointError, match="choose best or last"):
        load_params(tmp_path, "newest")


def test_a_full_disk_leaves_the_earlier_checkpoints_and_the_run_goes_on_once_space_is_free(tmp_path, monkeypatch):
    undisturbed = toy.train(tmp_path / "undisturbed", epochs=4)
    write = Checkpoints._write

    def full_from_step_21(self, step, trees, body):
        if step >= 21:
            (self.directory / f"step_{step}.orbax-checkpoint-tmp").mkdir()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, step, trees, body)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "_write", full_from_step_21)
        with pytest.raises(TrainingError) as error:
            toy.train(tmp_path / "full", epochs=4)
    message = str(error.value)
    assert "disk is full: the checkpoint of step 21 needs about" in message
    assert "The checkpoint of step 14 is intact" in message
    assert "start the same command again" in message
    with Checkpoints(tmp_path / "full" / "checkpoints") as checkpoints:
        assert checkpoints.steps()[0] == 14
        assert not list(checkpoints.directory.glob("*tmp*"))

    resumed = toy.train(tmp_path / "full", epochs=4)
    assert checksums(resumed.params) == checksums(undisturbed.params)


def test_a_disk_that_is_nearly_full_is_helped_by_removing_the_superseded_checkpoint(tmp_path, monkeypatch, warnings):
    write = Checkpoints._write

    def room_for_two(self, step, trees, body):
        if len(self.steps()) >= 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, step, trees, body)

    monkeypatch.setattr(Checkpoints, "_write", room_for_two)
    assert toy.train(tmp_path, epochs=4).step == 28
    assert any("removing checkpoints older than the last" in text for text in warnings)


def test_a_disk_that_is_really_full_is_reported_and_survived(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        toy.train(disk, epochs=2, keep=1)
        filler = disk / "filler"
        filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - 2**13))
        with pytest.raises(TrainingError, match="disk is full"):
            toy.train(disk, epochs=3, keep=1)
        filler.unlink()
        assert toy.train(disk, epochs=3, keep=1).step == 21
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_checkpoint_that_cannot_be_written_for_another_reason_is_reported_with_it(tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("UNAVAILABLE: the network drive is gone")

    monkeypatch.setattr(Checkpoints, "_write", broken)
    with pytest.raises(
        TrainingError, match=r"could not be written \(ValueError: UNAVAILABLE: the network drive is gone"
    ):
        toy.train(tmp_path)


def test_values_of_a_checkpoint_that_nothing_reads_are_no_difference():
    saved = {"fusion": {"kind": "concat", "expert": "identity"}}
    wanted = {
        "fusion": {"kind": "concat", "expert": "mlp", "residual": False},
        "info": {"defaults": {"fusion": {"kind": "momef", "residual": False}}, "unread": {"fusion": ("expert",)}},
    }
    assert differences(completed(saved, wanted), wanted) == []
    read = wanted | {"info": {}}
    assert differences(completed(saved, read), read)[0] == "fusion.expert: checkpoint 'identity', now 'mlp'"
