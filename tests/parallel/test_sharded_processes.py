"""A step and an evaluation over two processes of four fake devices each are those of one device."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrec_jax.training.trees import named_leaves
from tests.parallel.runs import (
    CANCELLED,
    LORA,
    ONE,
    RELATIVE,
    SMALL,
    SOFTMAX,
    check_gradients,
    encoded,
    live_run,
    measured,
    shop_run,
    take_steps,
)

ROOT = Path(__file__).resolve().parent.parent.parent


def in_processes(case: str, shop: Path, workdir: Path, count: int) -> list[dict[str, Any]]:
    """What each of so many processes, with eight devices together, prints of a case of `worker.py`."""
    # Beside the flags of the tests' conftest.py.
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={8 // count}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "tests.parallel.worker", case, str(shop), str(workdir), str(port), str(count)]
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*argv, str(number)], **options) for number in range(count)]
    try:
        # All at once: none must wait for its output to be read while the others wait for it.
        with ThreadPoolExecutor(count) as pool:
            done = list(pool.map(lambda process: process.communicate(timeout=600), processes))
    finally:
        for process in processes:
            process.kill()
    for process, (_, err) in zip(processes, done, strict=True):
        assert process.returncode == 0, err[-4000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in done]


def arrays(gradients: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
    """Leaves as they were before they were printed."""
    return [{name: np.asarray(leaf, np.float32) for name, leaf in named.items()} for named in gradients]


def check_measured(found: dict[str, Any], expected: dict[str, Any], bound: float = RELATIVE) -> None:
    """The same metrics, gradients and evaluation.

    Args:
        found: as printed.
        expected: see `runs.measured`.
        bound: of the gradients.
    """
    for number, (one, many) in enumerate(zip(expected["steps"], found["steps"], strict=True)):
        assert many == pytest.approx(one, rel=RELATIVE), number
    check_gradients(arrays(found["gradients"]), arrays(expected["gradients"]), bound)
    assert found["params"] == pytest.approx(expected["params"], rel=1e-4)  # Adam's division, see check_step.py
    assert found["test"] == pytest.approx(expected["test"], rel=RELATIVE)
    assert sorted(found["users"]) == list(range(40))
    assert found["ranks"] == expected["ranks"]


@pytest.mark.long
def test_two_processes_of_four_devices_agree_with_one_device(shop, tmp_path):
    one = shop_run(shop, tmp_path, ONE, **SMALL)
    expected = measured(one)  # also fills the store and the prepared data
    live = live_run(shop, tmp_path / "live", ONE, **LORA)
    expected_live, expected_steps = encoded(live), take_steps(live, 1)
    results = in_processes("as_configured", shop, tmp_path, 2)
    for found in results:
        check_measured(found, expected)
        assert found["live"] == pytest.approx(expected_live, rel=RELATIVE)
        for alone, many in zip(expected_steps.metrics, found["live_steps"], strict=True):
            assert many == pytest.approx(alone, rel=RELATIVE)
        check_gradients(
            arrays(found["live_gradients"]), [named_leaves(tree) for tree in expected_steps.gradients], CANCELLED
        )
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


@pytest.mark.long
def test_own_items_full_softmax_and_split_weights_over_two_processes_agree_with_one_device(shop, tmp_path):
    expected = {
        "own": measured(shop_run(shop, tmp_path, ONE, **SMALL)),
        "softmax": measured(shop_run(f"{shop},words", tmp_path, ONE, **SOFTMAX)),
        "live": measured(live_run(shop, tmp_path / "live", ONE, **LORA)),
    }
    # Local negatives are those of one process with the same mesh, which check_step.py compares with one device.
    (alone,) = in_processes("otherwise", shop, tmp_path, 1)
    expected["local"] = alone["local"]
    for found in in_processes("otherwise", shop, tmp_path, 2):
        for name, of_one in expected.items():
            check_measured(found[name], of_one, CANCELLED if name in ("softmax", "live") else RELATIVE)
