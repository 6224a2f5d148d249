"""Metrics files, the learning curve, and what is shown of a run."""

from __future__ import annotations

import csv
import io
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import toy
from rich.console import Console

from mmrec_jax.training.progress import RunProgress
from mmrec_jax.training.writers import MetricsCsv, TensorBoardEvents, learning_curve


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_metrics_csv_is_long_with_stable_columns(tmp_path):
    toy.train(tmp_path, epochs=2)
    table = rows(tmp_path / "metrics.csv")
    assert list(table[0]) == ["step", "epoch", "split", "name", "value"]
    assert {row["split"] for row in table} == {"train", "train_epoch", "valid"}
    assert [row["step"] for row in table if row["split"] == "valid"] == ["7", "14"]
    assert [row["epoch"] for row in table if row["split"] == "valid"] == ["1", "2"]
    steps = [int(row["step"]) for row in table]
    assert steps == sorted(steps)


@pytest.mark.parametrize("torn", ["", "9,2,train,lo", "9,2,train,loss,0.4"])
def test_rows_after_the_resumed_step_and_a_torn_row_are_cut_off(tmp_path, torn):
    path = tmp_path / "metrics.csv"
    first = MetricsCsv(path, 0)
    for step in (3, 6, 9):
        first.write(step, 1, "train", {"loss": step / 10, "accuracy": 1 / 3})
    first.close()
    path.write_text(path.read_text() + torn)
    second = MetricsCsv(path, 6)
    second.write(9, 2, "train", {"loss": 0.25})
    second.close()
    assert [(row["step"], row["name"], row["value"]) for row in rows(path)] == [
        ("3", "accuracy", repr(1 / 3)),
        ("3", "loss", "0.3"),
        ("6", "accuracy", repr(1 / 3)),
        ("6", "loss", "0.6"),
        ("9", "loss", "0.25"),
    ]


def test_a_fresh_run_overwrites_a_file_of_something_else(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss\n1,0.5\n")
    MetricsCsv(path, 100).close()
    assert path.read_text() == "step,epoch,split,name,value\n"


def events(directory):
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def test_tensorboard_events_hold_the_metrics_and_void_what_a_resumed_run_writes_again(tmp_path):
    writer = TensorBoardEvents(tmp_path, resumed_step=4)
    writer.write(5, 1, "valid", {"NDCG@10": 0.25, "HR@10": 0.5})
    writer.close()
    first, start, values = events(tmp_path)
    assert first.file_version
    assert (start.session_log.status, start.step) == (1, 5)
    assert {value.tag: value.simple_value for value in values.summary.value} == {
        "valid/HR@10": 0.5,
        "valid/NDCG@10": 0.25,
    }
    assert values.step == 5


def test_the_learning_curve_is_a_picture(tmp_path):
    result = toy.train(tmp_path, learning_curve=True, tensorboard=True)
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").iterdir())
    learning_curve(tmp_path / "again.png", result.history, "absent", None)


def shown(terminal: bool, **changes) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    progress = RunProgress("toy", toy.config(progress=True, **changes), 7, 0, console)
    entry = {"epoch": 1, "step": 7, "seconds": 30.0, "peak_memory_bytes": 2**20, "train": {"loss": 0.5}}
    progress.advance(3)
    progress.epoch({**entry, "valid": {"score": 0.25}}, 0.25, 7)
    progress.epoch({**entry, "epoch": 2, "step": 14, "valid": {"score": 0.1}}, 0.25, 7)
    progress.close()
    return console.file.getvalue()


def test_a_log_gets_one_plain_line_an_epoch_with_the_time_left():
    lines = shown(terminal=False).strip().splitlines()
    assert len(lines) == 2
    assert lines[0] == "epoch 1/3  step 7  loss 0.5000  score 0.2500 (best)  30.0 s  1 MiB  at most 0:01:00 left"
    assert "score 0.1000 (best 0.2500)" in lines[1]
    assert "\x1b" not in "".join(lines)


def test_a_terminal_gets_a_bar():
    text = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", shown(terminal=True))
    assert "3/21 steps" in text
    assert "epoch 1/3" in text


def test_heavy_libraries_are_imported_only_when_they_are_used():
    code = (
        "import sys, mmrec_jax.training; "
        "heavy = ('matplotlib', 'tensorboardX', 'orbax', 'tensorflow', 'torch', 'pandas'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    root = str(Path(toy.__file__).parents[2])
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
