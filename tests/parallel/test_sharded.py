"""The checks of `eight/`, each file in a process of its own that has eight fake devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted(path.name for path in (Path(__file__).parent / "eight").glob("check_*.py"))
# As in the tests' conftest.py; a process gets no flags from there, since it needs another number of devices.
FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_force_host_platform_device_count=8"


@pytest.mark.parametrize("file", FILES)
def test_on_eight_devices(file):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", f"tests/parallel/eight/{file}"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": FLAGS, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
