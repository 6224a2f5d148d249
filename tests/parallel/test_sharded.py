"""The checks of `eight/`, in one process that has eight fake devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CHECKS = Path(__file__).parent / "eight"
NAMES = sorted(path.stem for path in CHECKS.glob("check_*.py"))
FLAGS = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"  # beside those of the tests' conftest.py
ENDS = {"failure", "error", "skipped"}


@pytest.fixture(scope="module")
def cases(request, tmp_path_factory):
    """File -> what is reported of each of its checks, for those files that are asked for."""
    asked = {item.callspec.params["name"] for item in request.session.items if item.path == request.path}
    report = tmp_path_factory.mktemp("eight") / "report.xml"
    files = [str(CHECKS / f"{name}.py") for name in NAMES if name in asked]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", f"--junitxml={report}", *files],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": FLAGS, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout[-6000:] + done.stderr[-2000:]  # 1: some failed
    found = {name: [] for name in asked}
    for case in ElementTree.parse(report).iter("testcase"):
        found[case.get("classname").rpartition(".")[2]].append(case)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_on_eight_devices(cases, name):
    failed = [f"{case.get('name')}\n{end.text}" for case in cases[name] for end in case if end.tag in ENDS]
    assert not failed, "\n\n".join(failed)
    assert cases[name]
