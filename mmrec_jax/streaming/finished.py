"""Reports of windows that nothing is added to, a line each: written once and never again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmrec_jax.errors import CheckpointError
from mmrec_jax.files import sync

FILE = "finished.jsonl"


class Finished:
    """The finished reports of a stream.

    A line is there before the checkpoint that counts on it, so whoever is killed in between writes it again: the file
    is cut back to what a checkpoint counts on when that is read.

    Args:
        directory: of the stream's checkpoints.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._known = 0

    def add(self, reports: Sequence[dict[str, Any]]) -> None:
        """Writes those of the finished reports, which are of windows 1, 2, ..., that are not written yet."""
        if len(reports) == self._known:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(report) + "\n" for report in reports[self._known :])
            file.flush()
            os.fsync(file.fileno())
        sync(self._path.parent)
        self._known = len(reports)

    def before(self, window: int) -> list[dict[str, Any]]:
        """The reports of the windows before one; what is there of others is cut off.

        Raises:
            CheckpointError: some are not there.
        """
        content = self._path.read_bytes() if self._path.exists() else b""
        lines = content.splitlines(keepends=True)[: window - 1]
        try:
            reports = [json.loads(line) for line in lines]
        except ValueError as error:
            raise CheckpointError(f"{self._path} is damaged ({error}): restore it from a copy.") from error
        if [report["window"] for report in reports] != list(range(1, window)):
            raise CheckpointError(
                f"{self._path} has not the reports of the {window - 1} windows that the newest checkpoint is after: "
                "restore it from a copy."
            )
        if self._path.exists():
            os.truncate(self._path, sum(map(len, lines)))
        self._known = len(reports)
        return reports
