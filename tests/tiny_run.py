"""Runs over the small shop, through the command line of the library."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmrec_jax.main import command

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "tests" / "tiny_config.py"
_CACHE, _SECONDS = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


def arguments(shop: Path, workdir: Path, *flags: str, only: str = "") -> list[str]:
    """A command line for a run over the shop."""
    return ["mmrec_jax", f"--config={CONFIG}:{shop}{only and ','}{only}", f"--workdir={workdir}", *flags]


def subprocess_of(argv: list[str], **options) -> subprocess.Popen:
    """The command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-m", "mmrec_jax.main", *argv[1:]], env=environment, **options)


@contextlib.contextmanager
def kept_programs(compiled: Path) -> Iterator[None]:
    """Compiled programs go to a folder of the tests, those of processes that are started too; JAX's settings are put
    back afterwards.

    Tables are as wide as a terminal of 80 columns.
    """
    import jax

    from mmrec_jax.training import use_compilation_cache

    before = {name: jax.config.values[name] for name in (_CACHE, _SECONDS)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_CACHE.upper(), str(compiled))
        patch.setenv(_SECONDS.upper(), "0")
        patch.setenv("COLUMNS", "80")
        use_compilation_cache(compiled)
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)


@pytest.fixture(scope="session", autouse=True)
def compiled(request, tmp_path_factory) -> Iterator[Path]:
    """The folder of compiled programs, which all workers share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if hasattr(request.config, "workerinput") else base) / "programs"
    folder.mkdir(exist_ok=True)
    with kept_programs(folder):
        yield folder


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Path:
    """The folder with the dataset and the backbones."""
    from tests.tiny_dataset import write_shop

    return write_shop(tmp_path_factory.mktemp("shop") / "shop")


@pytest.fixture(scope="session")
def trained(shop, tmp_path_factory) -> Path:
    """The workdir of a finished run with its baselines; what it printed is in `printed.txt`. Not to be changed."""
    workdir = tmp_path_factory.mktemp("trained") / "shop"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert command(arguments(shop, workdir)) == 0
    (workdir.parent / "printed.txt").write_text(printed.getvalue(), encoding="utf-8")
    return workdir


@pytest.fixture
def cli(capsys):
    """Runs a command line in this process: arguments -> (exit code, standard output, standard error)."""

    def run(argv: list[str]) -> tuple[int, str, str]:
        code = command(argv)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
