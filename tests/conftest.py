"""Fixtures for all tests: where the shared data lies, and a persistent compilation cache for one run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tiny_run import cli, compiled, shop, trained  # noqa: F401 - fixtures of all folders

ROOT = Path(__file__).resolve().parent.parent


def shared_directory() -> Path | None:
    """The project's shared data: $MMREC_SHARED, else the folder beside the checkout, else None."""
    named = os.environ.get("MMREC_SHARED")
    for candidate in [Path(named)] if named else [ROOT.parent / "shared", ROOT.parent.parent / "shared"]:
        if (candidate / "data").is_dir():
            return candidate
    return None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared data folder; the test is skipped where it is absent."""
    directory = shared_directory()
    if directory is None:
        pytest.skip("the shared data folder is not here: set MMREC_SHARED to its path")
    return directory
