"""Comparisons over the small shop, whose runs are called in this process."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from mmrec_jax.comparison import jobs
from mmrec_jax.main import command
from tests.tiny_run import CONFIG

EPOCHS = ("training.epochs=1", "training.learning_curve=False", "evaluation.slices=False", "evaluation.bootstrap=0")


class Ended:
    """A process that has ended."""

    def __init__(self, code: int):
        self.code = code

    def poll(self):
        return self.code


def here(job: jobs.Job) -> Ended:
    """Runs a job in this process, which has imported and compiled everything."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        return Ended(command(["mmrec_jax", *job.arguments]))


@pytest.fixture
def begun(monkeypatch):
    """Titles of the jobs that were begun, which run in this process."""
    titles: list[str] = []

    def start(job):
        titles.append(job.title)
        return here(job)

    monkeypatch.setattr(jobs, "start", start)
    monkeypatch.setattr(jobs, "_POLL", 0)
    return titles


def write_comparison(path: Path, shop: Path, body: str) -> Path:
    """A comparison file; in its body `words` and `both` are config files of the shop with one and both modalities."""
    lines = [
        "from mmrec_jax.comparison import comparison, run",
        f"words, both = '{CONFIG}:{shop},words', '{CONFIG}:{shop}'",
        "",
        "def get_config():",
        "    config = comparison('shop')",
        f"    config.settings = {EPOCHS}",
        "    config.ks = (5,)",
        "    config.bootstrap = 200",
        *(f"    {line}" for line in body.strip().splitlines()),
        "    return config",
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def compared(begun, shop, cli, tmp_path):
    """Runs a comparison of a body: -> (workdir, exit code, standard output, standard error)."""

    def run(body: str, *flags: str, workdir: Path = tmp_path / "compared"):
        path = write_comparison(tmp_path / "comparison.py", shop, body)
        arguments = ["mmrec_jax", "--mode=compare", f"--config={path}", f"--workdir={workdir}", *flags]
        return workdir, *cli(arguments)

    return run


PLAIN = """
config.runs.words = run(words)
config.runs.layers = run(words, 'modalities.words.layers=(1,3)')
config.seeds = (0, 1)
config.baseline = 'layers'
"""


@pytest.fixture(scope="session")
def plain(shop, tmp_path_factory) -> Path:
    """The workdir of a finished plain comparison of two methods and two seeds. Not to be changed."""
    folder = tmp_path_factory.mktemp("comparison")
    path = write_comparison(folder / "comparison.py", shop, PLAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "start", here)
        patch.setattr(jobs, "_POLL", 0)
        assert command(["mmrec_jax", "--mode=compare", f"--config={path}", f"--workdir={folder / 'compared'}"]) == 0
    return folder / "compared"
