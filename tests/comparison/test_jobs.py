"""Processes that run one after another, fail, wait for each other, and are shown."""

from __future__ import annotations

import io
import os
import signal

import pytest
from rich.console import Console

from mmrec_jax.comparison import jobs
from mmrec_jax.comparison.jobs import Job, run_jobs


class Scripted:
    """A process that runs for some looks at it, then ends with a code."""

    def __init__(self, looks: int, code: int):
        self.looks, self.code, self.terminated = looks, code, False

    def poll(self):
        self.looks -= 1
        return None if self.looks >= 0 else self.code

    def terminate(self):
        self.terminated = True

    def kill(self):
        pass

    def wait(self, timeout=None):
        return self.code


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Runs jobs of scripted processes: (title, looks, code, after) -> (failures, started, most at once, printed)."""
    monkeypatch.setattr(jobs, "_POLL", 0)

    def run(*scripts, at_once=1, says="", **options):
        processes = {title: Scripted(looks, code) for title, looks, code, _ in scripts}
        started, most = [], 0

        def start(job):
            nonlocal most
            started.append(job.title)
            job.log.write_text(says)
            alive = [title for title in started if processes[title].looks >= 0]
            most = max(most, len(alive))
            return processes[job.title]

        monkeypatch.setattr(jobs, "start", start)
        text = io.StringIO()
        todo = [Job(title, title[0], (), tmp_path / f"{title}.txt", after) for title, _, _, after in scripts]
        failures = run_jobs(todo, at_once, Console(file=text, width=200), **options)
        return failures, started, most, text.getvalue()

    return run


def test_a_failed_job_ends_no_other_and_tells_its_error(scripted):
    says = "epoch 1/3\nTraceback (most recent call last):\n  File ...\nmmrec_jax.errors.TrainingError: the loss is\nnan"
    failures, started, most, printed = scripted(("a1", 0, 2, ()), ("b1", 0, 0, ()), ("a2", 0, 0, ()), says=says)
    assert started == ["a1", "b1", "a2"]
    assert most == 1
    assert list(failures) == ["a1"]
    assert failures["a1"].error == "mmrec_jax.errors.TrainingError: the loss is\nnan"
    assert failures["a1"].log.read_text() == says
    assert "1/3 a1: FAILED, see" in printed
    assert "3/3 a2:" in printed


def test_a_job_waits_for_another_and_is_not_begun_where_that_failed(scripted):
    chain = (("a1", 2, 0, ()), ("a2", 0, 1, ("a1",)), ("a3", 0, 0, ("a2",)), ("a4", 0, 0, ("a3",)), ("b1", 0, 0, ()))
    failures, started, _, _ = scripted(*chain, at_once=3)
    assert started == ["a1", "b1", "a2"]
    assert failures["a3"].error == "not begun: a2 failed"
    assert failures["a4"].log is None
    assert failures.keys() == {"a2", "a3", "a4"}


def test_no_more_run_at_once_than_are_allowed(scripted):
    _, started, most, _ = scripted(*((f"a{n}", 2, 0, ()) for n in range(5)), at_once=2)
    assert (len(started), most) == (5, 2)


def test_a_job_that_a_signal_ended_says_so(scripted):
    failures, *_ = scripted(("a1", 0, -9, ()))
    assert failures["a1"].error == "ended by signal 9 (out of memory?)"


def test_the_time_left_follows_from_what_jobs_of_the_kind_took(scripted):
    *_, printed = scripted(("b1", 0, 0, ()), ("a1", 0, 0, ()), ("a2", 0, 0, ()), seconds={"a": 600.0})
    assert "1/3 b1: 0 s, about 0:20:00 left" in printed


def test_what_still_runs_ends_with_the_comparison(monkeypatch, tmp_path):
    process = Scripted(10**6, 0)
    monkeypatch.setattr(jobs, "start", lambda job: process)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("a", "a", (), tmp_path / "log.txt")], 1, Console(file=io.StringIO()))
    assert process.terminated


def test_a_comparison_that_is_told_to_end_ends_its_jobs_too(monkeypatch, tmp_path):
    process = Scripted(10**6, 0)
    monkeypatch.setattr(jobs, "start", lambda job: process)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([Job("a", "a", (), tmp_path / "log.txt")], 1, Console(file=io.StringIO()))
    assert process.terminated
    assert signal.getsignal(signal.SIGTERM) == before
