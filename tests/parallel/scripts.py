"""Calls the launch scripts, with stand-ins for what they run."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LAUNCH = Path(__file__).resolve().parent.parent.parent / "launch"
FLAGS = ("--config=my configs/crossan.py:smoke", "--config.evaluation.ks=(5, 10)")


def launch(script: str, *arguments: str, cwd: Path | None = None, **environment: str):
    """Exit code, the lines that were printed, each cut into words as a shell does, and what was said of errors."""
    command = ["bash", str(LAUNCH / script), *arguments]
    options = {"env": clean(environment), "capture_output": True, "text": True, "timeout": 30, "cwd": cwd}
    done = subprocess.run(command, **options)
    return done.returncode, [shlex.split(line) for line in done.stdout.splitlines()], done.stderr


def clean(more: dict[str, str]) -> dict[str, str]:
    """The environment without what tells of a launcher."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "XLA_"))}
    return {**kept, **more}


def stand_in(folder: Path, name: str, body: str) -> dict[str, str]:
    """Puts a script in the place of a program: the environment in which it is found first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(body if body.startswith("#!") else f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@contextmanager
def heard() -> Iterator[None]:
    """Lets what a test starts hear SIGINT: behind a shell the tests ignore it, and their children would too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
