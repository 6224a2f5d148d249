"""Fixtures for all tests: where the shared data lies, and a persistent compilation cache for one run."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import pytest

# The time of these tests is that of compiling small programs. XLA makes them here without its optimisations, without
# its fusion emitters and each in one piece, in a third of the time: the operations are the same, rounding may differ in
# the last bits. For programs as they are elsewhere: JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= pytest. (Set before JAX
# starts.)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")

from tests.tiny_run import cli, compiled, shop, trained  # noqa: F401 - fixtures of all folders

ROOT = Path(__file__).resolve().parent.parent
LONGEST = (
    "parallel/test_sharded.py",
    "modes/test_modes_kills.py",
    "modes/test_configs.py",
    "parallel/test_processes.py",
    "training/test_training_loop.py",
    "streaming/test_strategies.py",
    "modes/test_four_modalities.py",
    "parallel/test_sharded_processes.py",
    "parallel/test_watch.py",
    "training/test_training_kills.py",
    "streaming/test_watch.py",
    "streaming/test_service.py",
    "streaming/test_service_ladder.py",
    "streaming/test_stream_command.py",
)
"""Files that take the longest: they begin the run, so that no worker is left alone with one at its end."""
MUCH = 3 * 2**29
"""Bytes of memory with which a worker forgets its programs, at the end of a file."""


def shared_directory() -> Path | None:
    """The project's shared data: $MMREC_SHARED, else the folder beside the checkout, else None."""
    named = os.environ.get("MMREC_SHARED")
    for candidate in [Path(named)] if named else [ROOT.parent / "shared", ROOT.parent.parent / "shared"]:
        if (candidate / "data").is_dir():
            return candidate
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sorts the files of `LONGEST` before the others, which stay in their order, and leaves out what takes minutes
    unless it is asked for."""
    if "long" not in config.option.markexpr:
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


def _resident_bytes() -> int:
    """Memory of this process; 0 where Linux does not tell it."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@pytest.fixture(scope="module", autouse=True)
def _settled() -> None:
    """What earlier files left is no more looked through by the garbage collector, which is called for each program of a
    training: half a second each time in a process that has run a thousand tests.

    Where that has become much, all programs are forgotten: what is needed again is read from the folder of compiled
    ones.
    """
    import jax

    from mmrec_jax.training.pages import release_freed_pages

    release_freed_pages()
    if _resident_bytes() > MUCH:
        jax.clear_caches()
        gc.unfreeze()
    gc.collect()
    gc.freeze()
    release_freed_pages()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared data folder; the test is skipped where it is absent."""
    directory = shared_directory()
    if directory is None:
        pytest.skip("the shared data folder is not here: set MMREC_SHARED to its path")
    return directory
