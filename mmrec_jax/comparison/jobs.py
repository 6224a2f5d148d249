"""Processes of the command line, one after another or a few at a time, with progress and the time that is left."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

from rich.console import Console

import mmrec_jax

_POLL = 0.2  # seconds between two looks at the processes
_GRACE = 10  # seconds that a process has to end when it is told to
_SHOWN = 12  # lines of an error


@dataclass(frozen=True)
class Job:
    """A process of the command line.

    Attributes:
        title: what a person calls it.
        kind: jobs of one kind take about as long.
        arguments: flags.
        log: file that takes what it prints.
        after: titles of jobs that must have succeeded before.
    """

    title: str
    kind: str
    arguments: tuple[str, ...]
    log: Path
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a job has no result.

    Attributes:
        error: what it said last.
        log: file with all that it said; None where it was not begun.
    """

    error: str
    log: Path | None


class Process(Protocol):
    """What is asked of a process: as `subprocess.Popen`."""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""

    def terminate(self) -> None:
        """Tells it to end."""

    def kill(self) -> None:
        """Ends it."""

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end."""


def start(job: Job) -> Process:
    """Starts a job with the code that this process runs, wherever that was imported from."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    code = str(Path(mmrec_jax.__file__).resolve().parent.parent)
    paths = [code, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-u", "-m", "mmrec_jax.main", *job.arguments]
    with job.log.open("w", encoding="utf-8") as log:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def run_jobs(
    jobs: Sequence[Job], at_once: int, console: Console, seconds: Mapping[str, float] | None = None
) -> dict[str, Failure]:
    """Runs jobs to their ends; one that fails ends no other.

    Args:
        jobs: in the order to start them.
        at_once: how many run at the same time.
        console: where progress is shown.
        seconds: kind -> what a job of it took, where that is known already.

    Returns:
        Title -> failure of each job that failed, or that could not be begun because one before it failed.
    """
    with _ended_by_signals():
        return _Jobs(jobs, at_once, console, dict(seconds or {})).run()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Lets what would end this process at once do as Ctrl-C does, so that its jobs end too."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
    changed = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in changed:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


class _Jobs:
    def __init__(self, jobs: Sequence[Job], at_once: int, console: Console, known: dict[str, float]):
        self.waiting, self.total, self.at_once, self.console = list(jobs), len(jobs), at_once, console
        self.running: dict[Job, tuple[Process, float]] = {}
        self.took = {kind: [value] for kind, value in known.items()}
        self.failures: dict[str, Failure] = {}
        self.ended = 0

    def run(self) -> dict[str, Failure]:
        try:
            with self.console.status("") as status:
                while self.waiting or self.running:
                    self._start()
                    status.update(self._status())
                    time.sleep(_POLL)
                    self._collect()
        finally:
            self._end_all()
        return self.failures

    def _start(self) -> None:
        undone = {job.title for job in (*self.waiting, *self.running)}
        for job in list(self.waiting):
            if failed := [title for title in job.after if title in self.failures]:
                self.waiting.remove(job)
                self._end(job, "not begun", Failure(f"not begun: {failed[0]} failed", None))
            elif len(self.running) < self.at_once and not undone.intersection(job.after):
                self.waiting.remove(job)
                self.running[job] = start(job), time.perf_counter()

    def _collect(self) -> None:
        for job, (process, since) in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[job]
            seconds = time.perf_counter() - since
            if code:
                error = _error(job.log, code)
                self._end(job, f"FAILED, see {job.log}: {error.splitlines()[0]}", Failure(error, job.log))
            else:
                self.took.setdefault(job.kind, []).append(seconds)
                self._end(job, f"{seconds:.0f} s")

    def _end(self, job: Job, note: str, failure: Failure | None = None) -> None:
        self.ended += 1
        if failure:
            self.failures[job.title] = failure
        left = f", about {_time(self._left())} left" if self.waiting or self.running else ""
        self.console.print(f"{self.ended}/{self.total} {job.title}: {note}{left}", soft_wrap=True)

    def _left(self) -> float:
        """Seconds until all is done, as far as can be told."""
        now = time.perf_counter()
        took = {kind: fmean(values) for kind, values in self.took.items()}
        for job, (_, since) in self.running.items():
            if job.kind not in took and (share := _share_done(job.log)):
                took[job.kind] = (now - since) / share
        usual = fmean(took.values()) if took else 0.0
        left = sum(took.get(job.kind, usual) for job in self.waiting)
        left += sum(max(took.get(job.kind, usual) - (now - since), 0) for job, (_, since) in self.running.items())
        return left / min(self.at_once, max(len(self.waiting) + len(self.running), 1))

    def _status(self) -> str:
        shown = [f"{job.title}: {_last_line(job.log)}" for job in self.running]
        left = self._left()
        return "\n".join([f"{self.ended}/{self.total} done" + (f", about {_time(left)} left" if left else ""), *shown])

    def _end_all(self) -> None:
        """What still runs, because this process is to end, ends too."""
        for process, _ in self.running.values():
            process.terminate()
        for process, _ in self.running.values():
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()


def _error(log: Path, code: int) -> str:
    """What a failed process said last: from the line that names the error on."""
    if code < 0:
        why = " (out of memory?)" if code == -9 else ""
        return f"ended by signal {-code}{why}"
    lines = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    named = [number for number, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    said = lines[named[-1] :] if named else lines[-1:]
    return "\n".join(said[:_SHOWN]) or f"exit code {code}"


def _last_line(log: Path) -> str:
    lines = _tail(log).splitlines()
    return lines[-1][:100] if lines else "starting"


def _share_done(log: Path) -> float:
    """Share of a training's epochs that its log tells of."""
    epochs = re.findall(r"epoch (\d+)/(\d+)", _tail(log))
    return int(epochs[-1][0]) / int(epochs[-1][1]) if epochs else 0.0


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            return file.read().decode("utf-8", errors="replace").rstrip()
    except FileNotFoundError:
        return ""


def _time(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
