"""SIGTERM: where the run is saved and ends, alone and among several processes."""

from __future__ import annotations

import os
import random
import signal
import threading
import time

import pytest

from mmrec_jax.errors import Preempted
from mmrec_jax.parallel.preemption import StopRequest


def test_a_process_that_is_alone_ends_at_the_boundary_after_the_signal():
    request, said = StopRequest(), []

    def train():
        with request.at_boundaries():
            said.append(request.boundary())
            os.kill(os.getpid(), signal.SIGTERM)
            said.append(request.boundary())

    with request.heard(), pytest.raises(Preempted, match="is saved"):
        train()
    assert said == [False, True]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_outside_of_training_the_signal_ends_the_run_at_once():
    request = StopRequest()

    def evaluate():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with request.heard(), pytest.raises(Preempted, match="outside of training"):
        evaluate()
    assert not request.told  # the next command line of this process begins anew


def test_a_handler_of_somebody_else_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(True))
    try:
        with StopRequest().heard():
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [True]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("seed", range(5))
def test_several_processes_end_at_the_same_boundary_which_none_has_passed(seed):
    """Threads stand for processes; each may be two steps ahead of the slowest, as with steps that are queued."""
    requests = [StopRequest() for _ in range(4)]
    steps, ended = [0] * 4, [0] * 4
    uneven = random.Random(seed)
    pauses = [[uneven.random() * 2e-3 for _ in range(400)] for _ in requests]

    def run(index):
        requests[index].grouped = True
        for step in range(400):
            while step > min(steps) + 2:
                time.sleep(1e-4)
            time.sleep(pauses[index][step])
            steps[index] = step + 1
            if requests[index].boundary():
                ended[index] = step + 1
                return

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05 + 0.02 * seed)
    passed = []
    for request in requests:  # the answers come one after another, as they do over a network
        passed.append(request.ask())
        time.sleep(uneven.random() * 5e-3)
    for request in requests:
        time.sleep(uneven.random() * 5e-3)
        request.decide(max(passed) + 1)
    for thread in threads:
        thread.join(20)
    assert ended == [max(passed) + 1] * 4
