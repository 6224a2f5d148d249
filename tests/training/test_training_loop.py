"""The loop: what it trains, when it evaluates, stops and saves, and what it leaves."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import toy

from mmrec_jax.errors import ConfigError, Preempted, TrainingError
from mmrec_jax.training import KeptSteps, load_params, loop
from mmrec_jax.training.checkpoints import Checkpoints
from mmrec_jax.training.compilations import process_counter
from mmrec_jax.training.manifest import checksums
from mmrec_jax.training.trees import host_copy
from tests.tiny_run import kept_programs


class Scripted(toy.ToyTask):
    """Validation gives the values of a list, and remembers the parameters it was given."""

    def __init__(self, values):
        super().__init__()
        self.values, self.seen = iter(values), []

    def validate(self, params, frozen):
        self.seen.append(checksums(host_copy(params)))
        return {"score": next(self.values)}


def test_training_learns(tmp_path):
    result = toy.train(tmp_path, epochs=20, learning_rate=3e-2)
    assert result.history[-1]["train"]["loss"] < 0.7 * result.history[0]["train"]["loss"]
    assert result.best_value > 0.75 * result.history[0]["valid"]["score"]


def test_the_best_parameters_are_returned_not_the_last(tmp_path):
    task = Scripted([0.1, 0.7, 0.3, 0.7])
    result = toy.train(tmp_path, task=task, epochs=4)
    assert (result.best_step, result.best_value, result.step) == (14, 0.7, 28)
    assert checksums(result.params) == task.seen[1] != task.seen[3]
    assert checksums(load_params(tmp_path, "best")[0]) == task.seen[1]
    assert checksums(load_params(tmp_path, "last")[0]) == task.seen[3]


def test_training_stops_when_patience_is_out_and_stays_stopped(tmp_path):
    values = [0.5, 0.6, 0.1, 0.2, 0.3, 0.9]
    result = toy.train(tmp_path, task=Scripted(values), epochs=6, patience=2)
    assert result.stopped_early
    assert [entry["epoch"] for entry in result.history] == [1, 2, 3, 4, 5]
    again = toy.train(tmp_path, task=Scripted([]), epochs=6, patience=2)
    assert (again.step, again.best_step) == (35, 14)


def test_a_metric_can_be_minimised(tmp_path):
    result = toy.train(tmp_path, task=Scripted([0.5, 0.2, 0.4]), monitor_mode="min")
    assert (result.best_step, result.best_value) == (14, 0.2)


def test_evaluation_can_start_late_and_be_rare_but_the_last_epoch_is_evaluated(tmp_path):
    result = toy.train(tmp_path, task=Scripted([0.1, 0.2, 0.3]), epochs=6, eval_from=2, eval_every=3)
    assert [entry["epoch"] for entry in result.history if "valid" in entry] == [2, 5, 6]


def test_a_finished_run_goes_on_when_more_epochs_are_asked_for(tmp_path):
    whole = toy.train(tmp_path / "whole", epochs=4)
    toy.train(tmp_path / "parts", epochs=2)
    parts = toy.train(tmp_path / "parts", epochs=4)
    assert checksums(parts.params) == checksums(whole.params)
    csv = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "parts")]
    assert csv[0] == csv[1]


def test_more_epochs_of_a_cosine_schedule_are_warned_of(tmp_path, caplog):
    settings = {"schedule": "cosine", "final_fraction": 0.1}
    toy.train(tmp_path, epochs=2, **settings)
    toy.train(tmp_path, epochs=1, **settings)
    assert "stretches" not in caplog.text, "nothing is left to train"
    toy.train(tmp_path, epochs=4, **settings)
    assert "training.epochs was 2 and is now 4" in caplog.text
    assert "go from 10% to 55% of their highest at once" in caplog.text
    caplog.clear()
    toy.train(tmp_path, epochs=4, **settings)
    assert caplog.text == ""


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module", params=[{}, {"checkpoint_every_steps": 2, "ema_decay": 0.5, "schedule": "cosine"}])
def whole(request, tmp_path_factory):
    """Settings, and a run of two epochs with them: its workdir and what it found. Not to be changed."""
    workdir = tmp_path_factory.mktemp("whole")
    return request.param, workdir, toy.train(workdir, epochs=2, **request.param)


def check_same(workdir, parts, whole):
    """The run in parts found what the whole one did, to the same bits."""
    _, folder, expected = whole
    assert checksums(parts.params) == checksums(expected.params)
    assert (parts.best_step, parts.best_value) == (expected.best_step, expected.best_value)
    assert [entry["train"] for entry in parts.history] == [entry["train"] for entry in expected.history]
    csv = [(place / "metrics.csv").read_text() for place in (folder, workdir)]
    assert csv[0] == csv[1]
    ends = [load_params(place, "last")[1]["checksums"] for place in (folder, workdir)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("steps", [1, 5, 7, 11])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, steps, whole):
    class Stops(toy.ToyStream):
        def __next__(self):
            if self._taken == steps:
                raise Interrupted
            return super().__next__()

    settings = whole[0]
    with pytest.raises(Interrupted):
        toy.train(tmp_path, stream=Stops(), epochs=2, **settings)
    check_same(tmp_path, toy.train(tmp_path, epochs=2, **settings), whole)


def test_the_order_is_evaluate_then_save_then_next_batch(tmp_path, monkeypatch):
    events = []

    class Told(toy.ToyStream):
        def __next__(self):
            events.append(f"batch {self._taken}")
            return super().__next__()

    class Evaluated(toy.ToyTask):
        def validate(self, params, frozen):
            events.append("evaluate")
            return super().validate(params, frozen)

    save = Checkpoints.save

    def told(self, step, *args):
        events.append(f"save {step}, stream at {args[-1]['stream']['taken']}")
        save(self, step, *args)

    monkeypatch.setattr(Checkpoints, "save", told)
    toy.train(tmp_path, task=Evaluated(), stream=Told(batches_per_epoch=3), epochs=2)
    batches = ["batch 0", "batch 1", "batch 2"]
    assert events[:6] == [*batches, "evaluate", "save 3, stream at 3", "batch 3"]


@pytest.mark.parametrize("bad_step", [0, 4, 13])
def test_values_that_are_not_finite_stop_the_run_before_they_are_saved(tmp_path, bad_step):
    with pytest.raises(TrainingError, match=rf"Step {bad_step + 1} \(epoch {bad_step // 7 + 1}\): the loss is not"):
        toy.train(tmp_path, stream=toy.ToyStream(poisoned_step=bad_step), checkpoint_every_steps=2, log_every=5)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert max(checkpoints.steps(), default=0) <= bad_step
        for step in checkpoints.steps():
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(checkpoints.read(step).params))


def test_a_validation_metric_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(TrainingError, match="Validation metric score is nan after step 7"):
        toy.train(tmp_path, task=Scripted([float("nan")]))


def test_an_unknown_monitored_metric_names_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"training.monitor='HR@5': validation gives only \['score'\]"):
        toy.train(tmp_path, monitor="HR@5")


def test_the_host_waits_for_the_device_only_where_metrics_are_due(tmp_path, monkeypatch):
    fetched = []
    get = jax.device_get

    def counted(tree):
        fetched.append(len(jax.tree.leaves(tree)))
        return get(tree)

    stream = toy.ToyStream(batches_per_epoch=60)
    monkeypatch.setattr(jax, "device_get", counted)
    toy.train(tmp_path / "a", stream=stream, epochs=1, log_every=60)
    rare = len(fetched)
    toy.train(tmp_path / "b", stream=toy.ToyStream(batches_per_epoch=60), epochs=1, log_every=10)
    assert len(fetched) - rare == rare + 2 * 5  # five more log steps, each fetches health and metrics


def test_the_history_has_times_memory_and_recompilations(tmp_path):
    result = toy.train(tmp_path)
    for number, entry in enumerate(result.history, start=1):
        assert (entry["epoch"], entry["step"], entry["recompilations"]) == (number, 7 * number, 0)
        assert 0 < entry["seconds"] < 60
        assert entry["peak_memory_bytes"] > 50 * 2**20  # a process with JAX in it
    json.dumps(result.history)


def test_a_shape_that_warm_up_missed_is_reported_and_trained_on(tmp_path):
    class Forgets(toy.ToyStream):
        def warmup_batches(self):
            return super().warmup_batches()[:1]

    result = toy.train(tmp_path, stream=Forgets())
    assert [entry["recompilations"] for entry in result.history] == [1, 0, 0]


def test_warm_started_parameters_are_where_a_fresh_run_begins_and_a_resumed_one_does_not(tmp_path):
    first = toy.train(tmp_path / "first", epochs=6)
    warm = toy.train(tmp_path / "second", epochs=1, warm_start=first.params)
    assert warm.history[0]["train"]["loss"] < first.history[0]["train"]["loss"]
    resumed = toy.train(tmp_path / "second", epochs=2, warm_start=toy.ToyTask().init(jax.random.key(9), toy.table()))
    straight = toy.train(tmp_path / "third", epochs=2, warm_start=first.params)
    assert checksums(resumed.params) == checksums(straight.params)


def test_a_full_disk_met_by_the_metrics_is_reported_too(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop.MetricsCsv, "write", full)
    with pytest.raises(TrainingError, match=r"disk is full.*checkpoints are intact|are intact"):
        toy.train(tmp_path)


def test_a_second_training_in_the_same_workdir_is_refused(tmp_path):
    class StartsAnother(toy.ToyTask):
        def validate(self, params, frozen):
            with pytest.raises(TrainingError, match="Another training is under way"):
                toy.train(tmp_path)
            return super().validate(params, frozen)

    toy.train(tmp_path, task=StartsAnother(), epochs=1)
    toy.train(tmp_path, epochs=2)


def test_compiled_programs_can_be_kept_on_disk(tmp_path, compiled):
    with kept_programs(compiled):
        toy.train(tmp_path / "run", compilation_cache_dir=str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir())


def test_kept_steps_are_those_of_the_settings(tmp_path):
    settings = {"ema_decay": 0.5, "clip_norm": 0.1, "epochs": 2}
    kept = toy.train(tmp_path / "kept", kept=KeptSteps(), **settings)
    alone = toy.train(tmp_path / "alone", **settings)
    assert checksums(host_copy(kept.params)) == checksums(host_copy(alone.params))
    assert kept.history[-1]["train"] == alone.history[-1]["train"]


def test_a_training_on_other_data_compiles_nothing_where_the_steps_are_kept(tmp_path):
    task, kept = toy.ToyTask(), KeptSteps()
    settings = {"task": task, "schedule": "exponential", "warm_start": toy.train(tmp_path / "start").params}
    toy.train(tmp_path / "first", kept=kept, **settings)
    counter = process_counter()
    before = counter.count
    again = toy.train(tmp_path / "again", kept=kept, stream=toy.ToyStream(5, seed=1), seed=3, **settings)
    assert counter.count == before
    alone = toy.train(tmp_path / "alone", stream=toy.ToyStream(5, seed=1), seed=3, **settings)
    for a, b in zip(jax.tree.leaves(again.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # the schedule is computed in the program, or before it
    assert kept.step(task, toy.config(clip_norm=1.0), again.params, None) is not kept.step(
        task, toy.config(), again.params, None
    )


@pytest.mark.parametrize("boundary", [1, 5, 7])
def test_a_run_that_is_told_to_stop_saves_at_that_boundary_and_goes_on_to_the_same_bits(tmp_path, whole, boundary):
    settings, asked = whole[0], []

    def stop():
        asked.append(True)
        return len(asked) == boundary

    with pytest.raises(Preempted, match=f"after step {boundary}, which is saved"):
        toy.train(tmp_path, stop=stop, epochs=2, **settings)
    assert load_params(tmp_path, "last")[1]["progress"]["step"] == boundary
    check_same(tmp_path, toy.train(tmp_path, epochs=2, **settings), whole)
