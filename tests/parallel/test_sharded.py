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
QUIET = ("-q", "-n0", "-p", "no:cacheprovider")
ENDS = {"failure", "error", "skipped"}
LONG = [name for name in NAMES if "mark.long" in (CHECKS / f"{name}.py").read_text()]


def reported(names: set[str], report: Path, *options: str) -> dict[str, list[ElementTree.Element]]:
    """File -> what is reported of each of its checks."""
    files = [str(CHECKS / f"{name}.py") for name in sorted(names)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *QUIET, *options, f"--junitxml={report}", *files],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": FLAGS, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout[-6000:] + done.stderr[-2000:]  # 1: some failed
    found: dict[str, list[ElementTree.Element]] = {name: [] for name in names}
    for case in ElementTree.parse(report).iter("testcase"):
        found[case.get("classname").rpartition(".")[2]].append(case)
    return found


def asked(request, test: str) -> set[str]:
    """The files that a test of this name was asked for."""
    chosen = [item for item in request.session.items if item.path == request.path and item.originalname == test]
    return {item.callspec.params["name"] for item in chosen}


@pytest.fixture(scope="module")
def cases(request, tmp_path_factory):
    report = tmp_path_factory.mktemp("eight") / "report.xml"
    return reported(asked(request, "test_on_eight_devices"), report)


@pytest.fixture(scope="module")
def long_cases(request, tmp_path_factory):
    report = tmp_path_factory.mktemp("eight") / "report.xml"
    return reported(asked(request, "test_on_eight_devices_at_length"), report, "-m", "long")


@pytest.mark.parametrize("name", NAMES)
def test_on_eight_devices(cases, name):
    assert_all_passed(cases[name])


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_on_eight_devices_at_length(long_cases, name):
    assert_all_passed(long_cases[name])


def assert_all_passed(cases):
    failed = [f"{case.get('name')}\n{end.text}" for case in cases for end in case if end.tag in ENDS]
    assert not failed, "\n\n".join(failed)
    assert cases
