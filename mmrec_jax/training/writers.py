"""Where a run's metrics go: `metrics.csv`, TensorBoard events, a picture of the learning curve."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

CSV_COLUMNS = ("step", "epoch", "split", "name", "value")


class Writer(Protocol):
    """Takes scalar metrics."""

    def write(self, step: int, epoch: int, split: str, values: Mapping[str, float]) -> None:
        """Records metrics after `step` steps, in the given epoch (counted from 1)."""

    def close(self) -> None:
        """Writes out what is left."""


class MetricsCsv:
    """`metrics.csv` in long form: one value a row, columns `step,epoch,split,name,value`.

    Splits: `train` (mean since the row before), `train_epoch` (mean over the epoch) and `valid`. It holds
    nothing that depends on the clock, so that a run that was killed and resumed leaves the same bytes as an
    undisturbed one.

    Args:
        path: of the file.
        resumed_step: rows of later steps, which the run will write again, and a torn last row are cut off.
    """

    def __init__(self, path: Path, resumed_step: int):
        header = ",".join(CSV_COLUMNS) + "\n"
        kept = _rows_until(path, resumed_step, header) if path.exists() else 0
        self._file = open(path, "r+" if kept else "w", encoding="utf-8", newline="")  # noqa: SIM115 - closed by close()
        if kept:
            self._file.truncate(kept)
            self._file.seek(kept)
        else:
            self._file.write(header)

    def write(self, step, epoch, split, values):
        """Appends a row a value and hands them to the operating system."""
        rows = (f"{step},{epoch},{split},{name},{float(value)!r}\n" for name, value in sorted(values.items()))
        self._file.write("".join(rows))
        self._file.flush()

    def close(self):
        """Closes the file."""
        self._file.close()


def _rows_until(path: Path, step: int, header: str) -> int:
    """Number of bytes of the header and the whole rows up to `step`; 0 where the file is another."""
    kept = 0
    for line in path.read_bytes().splitlines(keepends=True):
        first = line.split(b",", 1)[0]
        is_row = first.isdigit() and int(first) <= step and line.count(b",") >= len(CSV_COLUMNS) - 1
        if not line.endswith(b"\n") or not (is_row if kept else line == header.encode()):
            break
        kept += len(line)
    return kept


class TensorBoardEvents:
    """TensorBoard events, written at once.

    tensorboardX's `SummaryWriter` writes from a thread, and waits for it for ever once the disk is full; its
    event writer underneath has none.

    Args:
        directory: of the event files.
        resumed_step: events of later steps in older files are marked as void.
    """

    def __init__(self, directory: Path, resumed_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = event_pb2.Event, Summary
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(self._event(wall_time=time.time(), step=resumed_step + 1, session_log=start))

    def write(self, step, epoch, split, values):
        """Writes one event with all values, tagged `split/name`."""
        tagged = [
            self._summary.Value(tag=f"{split}/{name}", simple_value=value) for name, value in sorted(values.items())
        ]
        summary = self._summary(value=tagged)
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def close(self):
        """Flushes and closes the event file."""
        self._writer.close()


def learning_curve(path: Path, history: Sequence[Mapping], monitor: str, best_step: int | None) -> None:
    """Draws training loss and the monitored validation metric over epochs into a PNG.

    Args:
        path: of the picture.
        history: one entry an epoch, as in `FitResult.history`.
        monitor: name of the validation metric.
        best_step: step of the best parameters, marked by a line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot(xlabel="epoch", ylabel="training loss")
    left.plot([entry["epoch"] for entry in history], [entry["train"]["loss"] for entry in history], "C0.-")
    evaluated = [entry for entry in history if monitor in entry.get("valid", {})]
    right = left.twinx()
    right.set_ylabel(f"validation {monitor}")
    right.plot([entry["epoch"] for entry in evaluated], [entry["valid"][monitor] for entry in evaluated], "C1.-")
    for entry in evaluated:
        if entry["step"] == best_step:
            right.axvline(entry["epoch"], color="C1", linestyle=":", label=f"best: {entry['valid'][monitor]:.4f}")
            right.legend(loc="lower right")
    figure.savefig(path, dpi=120)
