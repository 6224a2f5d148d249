"""Processes that meet, watch each other, and end together: each is a process of its own, with JAX's collectives."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import re
import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from mmrec_jax.errors import HostError
from mmrec_jax.parallel.environment import from_flags
from mmrec_jax.parallel.peers import Line, Peer
from mmrec_jax.parallel.preemption import StopRequest
from mmrec_jax.parallel.rendezvous import Meeting, meet
from mmrec_jax.parallel.start import put_off_aborts
from mmrec_jax.parallel.watch import FINISHED, LOST, PREEMPTED, TOLD, Watch
from tests.parallel import member

ROOT = Path(__file__).resolve().parent.parent.parent


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


# Forked from a process that has imported what they need, which takes most of the time of a fresh one.
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["jax.experimental.multihost_utils", "mmrec_jax.parallel.start"])


@pytest.fixture(scope="module", autouse=True)
def _environment():
    """Of the process that they are forked from, which is started with the first of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


class Members:
    """Processes of `member.py`."""

    def __init__(self, count, *, timeout=20.0, steps=100_000, mishaps=None, missing=()):
        port, mishaps = free_port(), mishaps or {}
        self._folder = tempfile.TemporaryDirectory()
        self.processes = {}
        for index in range(count):
            if index not in missing:
                arguments = (self._said(index), count, index, port, timeout, steps, mishaps.get(index, ""))
                self.processes[index] = FORKED.Process(target=member.run, args=arguments, daemon=True)
                self.processes[index].start()

    def _said(self, index):
        return tuple(f"{self._folder.name}/{index}.{kind}" for kind in ("out", "err"))

    def said(self, index):
        """Standard output and error of a process."""
        return tuple(Path(name).read_text() if Path(name).exists() else "" for name in self._said(index))

    def wait_until_stepping(self):
        for index, process in self.processes.items():
            while process.is_alive() and "stepping" not in self.said(index)[0]:
                time.sleep(0.01)

    def end(self, index, timeout=40):
        """Exit code, standard output and standard error of a process."""
        self.processes[index].join(timeout)
        return self.processes[index].exitcode, *self.said(index)

    def ends(self):
        """The same of each."""
        return {index: self.end(index) for index in self.processes}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.join()
        self._folder.cleanup()


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
        code, _, said = members.end(0, timeout=30)
        took = time.monotonic() - since
    assert code == LOST
    assert re.search(r"process 1 \(.*\) has been silent for 3 s", said)
    assert took < 12


@pytest.mark.parametrize("culprit", [0, 1])
def test_a_process_that_lives_while_its_main_thread_waits_is_named(culprit):
    with Members(3, mishaps=dict.fromkeys(range(3), "none") | {culprit: "stuck"}) as members:
        ends = members.ends()
    for code, _, error in ends.values():
        assert code == LOST, ends
        assert re.search(rf"process {culprit} \(.*\) lives but is stuck: after step 10 .* others after step 11", error)


def test_processes_that_wait_together_or_advance_are_not_stuck(second, monkeypatch):
    watch, _ = second
    named = []
    monkeypatch.setattr(watch, "_end_all", lambda why, code, those: named.append(why))
    monkeypatch.setattr(watch, "_first", True)
    for passed, since, expected in ((0, 100, 0), (1, 1, 0), (1, 100, 1)):
        watch._count(0, passed)
        watch._advanced = time.monotonic() - since
        watch._look_for_the_stuck()
        assert len(named) == expected, named
    assert "process 1 (host, pid 101) lives but is stuck" in named[0]


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


@pytest.mark.parametrize("said", [b"GET / HTTP/1.0\r\n\r\n", b"[1]\n", b'{"index": 1}\n', b"\x00\xff\n"])
def test_a_stranger_at_the_port_of_the_meeting_is_passed_over(said):
    port, met = free_port(), {}
    groups = [from_flags(f"127.0.0.1:{port}", 2, index) for index in (0, 1)]

    def come(index):
        met[index] = meet(groups[index], 20.0, "run")

    first = threading.Thread(target=come, args=(0,))
    first.start()
    with connected(port + 1) as stranger:
        stranger.sendall(said)
        assert stranger.recv(1) == b""
    come(1)
    first.join()
    assert [peer.index for peer in met[1].peers] == [0, 1]
    for meeting in met.values():
        for line in meeting.lines.values():
            line.close()


def connected(port):
    """A connection to a port where somebody will soon listen."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=20)
        except ConnectionRefusedError:
            time.sleep(0.01)


def test_who_meets_a_stranger_in_the_place_of_the_first_process_says_so():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer():
            with server.accept()[0] as connection:
                connection.sendall(b'{"hello": 1}\n')
                connection.recv(2**10)

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(HostError, match=r"process 0 \(127.0.0.1 port \d+\) ended or fell silent"):
            meet(from_flags(f"127.0.0.1:{port - 1}", 2, 1), 5.0, "run")


@pytest.fixture
def second():
    """The watch of the second of two processes, not started, and the first one's end of its line."""
    mine, other = socket.socketpair()
    line = Line(TcpLike(mine))
    peers = tuple(Peer(index, "host", 100 + index) for index in (0, 1))
    with mine, other:
        yield Watch(Meeting(peers[1], peers, {0: line}), 20.0, 20.0, StopRequest()), other


class TcpLike:
    """One end of a pair, which has no option of TCP."""

    def __init__(self, one):
        self._one = one

    def setsockopt(self, *_):
        pass

    def __getattr__(self, name):
        return getattr(self._one, name)


def test_nobody_waits_for_the_word_of_a_first_process_that_is_gone_after_its_end(second):
    watch, other = second
    other.sendall(b'{"bye": "finished"}\n')
    other.close()
    watch.start()
    assert not watch.leave(FINISHED)


@pytest.mark.parametrize(("bye", "said"), [("a mistake", "failed: a mistake"), (TOLD, "was told to end")])
def test_a_first_process_that_is_gone_after_a_bad_end_is_named(second, monkeypatch, bye, said):
    watch, other = second
    exits = []
    monkeypatch.setattr(watch, "_exit", lambda why, code: (exits.append((why, code)), watch._over.set()))
    other.sendall(f'{{"bye": "{bye}"}}\n'.encode())
    other.close()
    watch.run()
    assert exits[0][0].startswith(f"process 0 (host, pid 100) {said}")
    assert exits[0][1] == (PREEMPTED if bye == TOLD else LOST)


def test_a_watch_that_fails_ends_its_process(second, monkeypatch, capsys):
    class Ended(BaseException):
        pass

    def end(code):
        raise Ended(code)

    watch, _ = second
    monkeypatch.setattr("mmrec_jax.parallel.watch.os._exit", end)
    monkeypatch.setattr(watch, "_send_what_is_due", lambda: 1 / 0)
    with pytest.raises(Ended, match="1"):
        watch.run()
    assert "ZeroDivisionError" in capsys.readouterr().err


def _aborting():
    """Aborts in a thread without the interpreter's lock, as JAX's client does, and ends in the main one as the watch
    would."""
    put_off_aborts()
    threading.Thread(target=ctypes.CDLL(None).abort, daemon=True).start()
    time.sleep(0.5)
    os._exit(LOST)


def test_the_watch_has_its_say_before_an_abort_takes_effect():
    process = FORKED.Process(target=_aborting, daemon=True)
    process.start()
    process.join(30)
    assert process.exitcode == LOST
