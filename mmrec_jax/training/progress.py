"""What a person sees of a run: a bar on a terminal, a line an epoch in a log."""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mmrec_jax.training.config import TrainingConfig


class RunProgress:
    """Shows how far a run is and when it will be done.

    Args:
        name: of the task.
        config: of the run.
        batches_per_epoch: steps of an epoch.
        step: steps that were taken already.
        console: where to write; standard output if not given.
    """

    def __init__(
        self,
        name: str,
        config: TrainingConfig,
        batches_per_epoch: int,
        step: int,
        console: Console | None = None,
    ):
        self._config = config
        self._console = console or Console(quiet=not config.progress)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            refresh_per_second=2,
            disable=not (config.progress and self._console.is_terminal),
        )
        self._task = self._bar.add_task(name, total=config.epochs * batches_per_epoch, completed=step)
        self._seconds: list[float] = []
        self._bar.start()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=step)

    def epoch(self, entry: Mapping, best_value: float | None, best_step: int | None) -> None:
        """Writes the line of a finished epoch; `entry` is the epoch's entry in the history."""
        self._seconds = [*self._seconds[-4:], entry["seconds"]]
        left = (self._config.epochs - entry["epoch"]) * sum(self._seconds) / len(self._seconds)
        parts = [
            f"epoch {entry['epoch']}/{self._config.epochs}",
            f"step {entry['step']}",
            f"loss {entry['train']['loss']:.4f}",
        ]
        monitor = self._config.monitor
        if monitor in entry.get("valid", {}):
            mark = " (best)" if best_step == entry["step"] else f" (best {best_value:.4f})"
            parts.append(f"{monitor} {entry['valid'][monitor]:.4f}{mark}")
        parts += [
            f"{entry['seconds']:.1f} s",
            f"{entry['peak_memory_bytes'] / 2**20:.0f} MiB",
            f"at most {datetime.timedelta(seconds=round(left))} left",
        ]
        self._console.print("  ".join(parts), highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Writes a line."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.stop()
