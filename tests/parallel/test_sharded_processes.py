"""A step and an evaluation over two processes of four fake devices each are those of one device."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.parallel.runs import LORA, ONE, SMALL, encoded, live_run, measured, shop_run, take_steps

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"  # beside those of the tests' conftest.py


@pytest.mark.long
def test_two_processes_of_four_devices_agree_with_one_device(shop, tmp_path):
    one = shop_run(shop, tmp_path, ONE, **SMALL)
    expected = measured(one)  # also fills the store and the prepared data
    live = live_run(shop, tmp_path / "live", ONE, **LORA)
    expected_live, expected_steps = encoded(live), take_steps(live, 1).metrics
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "tests.parallel.worker", str(shop), str(tmp_path), str(port), "2"]
    environment = {**os.environ, "XLA_FLAGS": FLAGS, "PYTHONPATH": str(ROOT)}
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*argv, str(number)], **options) for number in range(2)]
    try:
        done = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    results = []
    for process, (out, err) in zip(processes, done, strict=True):
        assert process.returncode == 0, err[-4000:]
        results.append(json.loads(out.splitlines()[-1]))
    for found in results:
        for number, (alone, many) in enumerate(zip(expected["steps"], found["steps"], strict=True)):
            assert many == pytest.approx(alone, rel=1e-5), number  # the bound
        assert found["params"] == pytest.approx(expected["params"], rel=1e-4)  # Adam's division, see check_step.py
        assert found["test"] == pytest.approx(expected["test"], rel=1e-5)
        assert sorted(found["users"]) == list(range(40))
        assert found["ranks"] == expected["ranks"]
        assert found["live"] == pytest.approx(expected_live, rel=1e-5)
        for alone, many in zip(expected_steps, found["live_steps"], strict=True):
            assert many == pytest.approx(alone, rel=1e-5)
        assert found["mistake"] == ["handled: of the first\nalone", "made"]
    # The store's rows are those of the catalogue without the padding row; each process has one half of the catalogue.
    rows, half = one.data.num_items + 1, 4 * -(-(one.data.num_items + 1) // 8)
    assert results[0]["stored"] == list(range(half - 1))
    assert results[1]["stored"] == list(range(half - 1, rows - 1))
    present = set(np.flatnonzero(live.live_catalogue.inputs["words"].present).tolist())
    assert set(results[0]["encoded"]) == {row for row in present if row < half}
    assert set(results[1]["encoded"]) == {row for row in present if row >= half}
    # Of the items of one batch, whose texts fill a row or two, each is read by one process.
    stepped = [set(found["stepped"]) for found in results]
    assert not stepped[0] & stepped[1]
    assert len(stepped[0] | stepped[1]) > len(present) // 2
