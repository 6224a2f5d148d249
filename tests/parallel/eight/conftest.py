"""What the checks on eight devices share."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def _eight_devices() -> None:
    assert len(jax.devices()) == 8, "start these by tests/parallel/test_sharded.py"


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """Runs of the shop share its store."""
    return tmp_path_factory.mktemp("runs")
