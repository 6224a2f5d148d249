"""A line on the console while extraction runs: done, items a second, time left."""

from __future__ import annotations

from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} items/s" if task.speed else "- items/s")


class ProgressLine:
    """Shows how far a modality is; items finished in earlier runs count as done but not towards the rate.

    Attributes:
        done: items finished in this run.
    """

    def __init__(self, title: str, total: int, done: int, shown: bool):
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, disable=not shown, speed_estimate_period=120)
        self.done = 0
        self._task = self._progress.add_task(f"extract {title}", total=total, completed=done)

    def advance(self, items: int) -> None:
        """Counts finished items."""
        self.done += items
        self._progress.advance(self._task, items)

    def __enter__(self) -> ProgressLine:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
