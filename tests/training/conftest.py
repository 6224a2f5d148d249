"""Compiled programs are kept for one test run: the toy's step is compiled once a shape, not once a test."""

from __future__ import annotations

import jax
import pytest

from mmrec_jax.training import use_compilation_cache


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """The directory of compiled programs."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(autouse=True)
def _kept_programs(compilation_cache):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    use_compilation_cache(compilation_cache)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
