"""Processes that meet, watch each other, and end together: each is a process of its own, with JAX's collectives."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LOST, PREEMPTED = 69, 75


def free_port():
    """A port whose follower is free too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


class Members:
    """Processes of `member.py`."""

    def __init__(self, count, *, timeout=20.0, steps=100_000, mishaps=None, missing=()):
        port = free_port()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "OMP_NUM_THREADS": "1"}
        program, mishaps = str(ROOT / "tests" / "parallel" / "member.py"), mishaps or {}
        self.processes = {
            index: subprocess.Popen(
                [sys.executable, program]
                + [str(value) for value in (count, index, port, timeout, steps, mishaps.get(index, ""))],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index in range(count)
            if index not in missing
        }

    def wait_until_stepping(self):
        for process in self.processes.values():
            for line in process.stdout:
                if line.startswith("stepping"):
                    break

    def ends(self, timeout=40):
        """Exit code, standard output and standard error of each."""
        said = {index: process.communicate(timeout=timeout) for index, process in self.processes.items()}
        return {index: (self.processes[index].returncode, *said[index]) for index in said}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.communicate()


def test_processes_that_finish_part_in_peace():
    with Members(2, steps=20) as members:
        ends = members.ends()
    assert [end[0] for end in ends.values()] == [0, 0], ends
    assert all(end[1].endswith("taken 20\n") for end in ends.values())


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_process_that_is_killed_is_named_by_all_others_at_once(victim):
    with Members(3) as members:
        members.wait_until_stepping()
        time.sleep(random.uniform(0, 0.3))
        pid = members.processes[victim].pid
        members.processes[victim].kill()
        since = time.monotonic()
        ends = members.ends()
        took = time.monotonic() - since
    for index, (code, _, error) in ends.items():
        if index != victim:
            assert code == LOST, ends
            assert f"process {victim} ({socket.gethostname()}, pid {pid}) is gone" in error
    assert took < 10  # the timeout is 20 s: nobody waited for it


def test_a_process_that_hangs_is_named_within_the_timeout():
    with Members(2, timeout=3.0, mishaps={1: "hang"}) as members:
        members.wait_until_stepping()
        since = time.monotonic()
        _, said = members.processes[0].communicate(timeout=30)
        took = time.monotonic() - since
    assert members.processes[0].returncode == LOST
    assert re.search(r"process 1 \(.*\) has been silent for 3 s", said)
    assert took < 12


def test_a_process_that_does_not_come_is_named():
    with Members(3, timeout=2.0, missing=[2]) as members:
        ends = members.ends()
    for code, _, error in ends.values():
        assert code == LOST
        assert "process 2 of 3 did not come" in error
        assert "within 2 s (parallel.timeout_seconds)" in error


def test_without_the_first_process_the_others_say_where_it_should_be():
    with Members(2, timeout=1.5, missing=[0]) as members:
        ends = members.ends()
    assert ends[1][0] == LOST
    assert re.search(r"process 0 \(127.0.0.1 port \d+\) could not be reached within 1.5 s", ends[1][2])


def test_a_process_with_other_flags_is_refused():
    with Members(2, mishaps={1: "flags"}) as members:
        ends = members.ends()
    for code, _, error in ends.values():
        assert code == LOST
        assert "was started with other flags or another version" in error


@pytest.mark.parametrize("culprit", [0, 1])
def test_the_failure_of_one_ends_the_others_with_its_reason(culprit):
    with Members(2, mishaps={culprit: "mistake"}) as members:
        ends = members.ends()
    assert ends[culprit][0] == 2
    code, _, error = ends[1 - culprit]
    assert code == LOST, ends
    assert re.search(rf"process {culprit} \(.*\) failed: ConfigError: a mistake of one", error)


@pytest.mark.parametrize("told", [(0,), (2,), (0, 1, 2)])
def test_processes_that_are_told_to_end_do_so_after_the_same_step(told):
    with Members(3) as members:
        members.wait_until_stepping()
        time.sleep(random.uniform(0, 0.3))
        for index in told:
            members.processes[index].terminate()
        ends = members.ends()
    assert [end[0] for end in ends.values()] == [PREEMPTED] * 3, ends
    assert len({end[1].splitlines()[-1] for end in ends.values()}) == 1, ends
