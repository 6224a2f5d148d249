"""Saved texts of compiled programs, and the compilers that not every machine has."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

TEXTS = Path(__file__).parent / "texts"


@pytest.fixture(scope="session")
def saved():
    """A function: name -> the module of a saved text."""
    from mmrec_jax.planning.hlo import read

    return lambda name: read((TEXTS / f"{name}.txt").read_text())


def _needs(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f'{module} is not installed: pip install -e ".[{extra}]"')


@pytest.fixture(scope="session")
def tpu_compiler() -> None:
    """The test is skipped where libtpu is absent."""
    _needs("libtpu", "plan")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")


@pytest.fixture(scope="session")
def gpu_compiler() -> None:
    """The test is skipped where the CUDA plugin is absent."""
    _needs("jax_cuda12_plugin", "plan_gpu")
