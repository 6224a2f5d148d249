"""`--mode=stream --watch=DIR` from raw files to recommendations, and back to an earlier version."""

from __future__ import annotations

import json

import polars as pl
import pytest

from mmrec_jax.modes.watch import drawn_after
from mmrec_jax.store import HiddenStateStore
from mmrec_jax.streaming.service import Service
from tests.tiny_dataset import catalogue
from tests.tiny_run import arguments

FLAGS = [
    "--mode=stream",
    *(f"--config.{key}={value}" for key, value in {
        "model.system": "xsmoe",
        "fusion.kind": "add",
        "training.epochs": 1,
        "stream.user_core": 0,
        "stream.valid_fraction": 0.4,
        "stream.context": "all",
        "stream.validation": "user",
        "stream.valid_candidates": "seen",
        "service.settle_seconds": 0,
        "service.idle_seconds": 0.001,
        "service.promote": "always",
    }.items()),
]  # fmt: skip


def write_window(folder, shop, number: int) -> None:
    """A third of the shop's events, with the items that are new in it beside."""
    events = pl.read_csv(shop / "data" / "interactions.csv")
    edges = [0, 3, 5, 7]
    part = events.filter(pl.col("timestamp").is_between(1_000 + edges[number - 1], 999 + edges[number]))
    before = events.filter(pl.col("timestamp") < 1_000 + edges[number - 1])["item"]
    part = part.filter(pl.col("item") < "i22") if number == 1 else part
    before = before.filter(before < "i22") if number == 2 else before
    items = catalogue().filter(pl.col("item").is_in(part["item"].to_list()) & ~pl.col("item").is_in(before.to_list()))
    folder.mkdir(exist_ok=True)
    if len(items):
        items.write_csv(folder / f"w{number}.items.csv")
    part.write_csv(folder / f"w{number}.csv")


@pytest.fixture(scope="module")
def streamed(shop, tmp_path_factory):
    """A workdir that two windows were lived through in, and the folder that they came in."""
    from mmrec_jax.main import command

    folder = tmp_path_factory.mktemp("watch")
    for number in (1, 2):
        write_window(folder / "in", shop, number)
    assert command(arguments(shop, folder / "run", *FLAGS, f"--watch={folder / 'in'}", only="words")) == 0
    return folder


def test_windows_become_versions_reports_and_a_store_that_grew(streamed):
    run = streamed / "run"
    content = json.loads((run / "stream.json").read_text())
    assert [report["window"] for report in content["windows"]] == [1, 2]
    assert content["windows"][0]["test"]["window"] == 2
    assert content["windows"][0]["new_items"] > 0
    assert content["windows"][1]["new_items"] > 0
    assert {len(held) for held in content["windows"][1]["experts"].values()} == {2}
    assert json.loads((run / "versions" / "service.json").read_text())["version"] == 1
    assert HiddenStateStore.open(run / "store").complete("words")
    assert {"stream.csv", "quality.png", "experts.png"} <= {path.name for path in run.iterdir()}


PLOTS = ("quality.png", "experts.png")


@pytest.mark.long
def test_the_next_window_is_gone_on_with_and_one_command_rolls_back(streamed, shop, cli, tmp_path, monkeypatch):
    run, drawn = streamed / "run", []

    def after_the_reports(self, number):
        drawn.append(number)
        for name in PLOTS:
            (run / name).unlink()

    monkeypatch.setattr(Service, "_clean", after_the_reports)
    write_window(streamed / "in", shop, 3)
    code, out, err = cli(arguments(shop, run, *FLAGS, f"--watch={streamed / 'in'}", only="words"))
    assert (code, err) == (0, "")
    assert "window 3: version 2 is in service" in " ".join(out.split())
    assert drawn == [2, 3]

    def listed():
        out = tmp_path / "lists.json"
        code, _, err = cli(["", "--mode=recommend", f"--workdir={run}", "--users=u01", "--k=3", f"--out={out}"])
        assert (code, err) == (0, "")
        return json.loads(out.read_text())

    newest = listed()
    code, out, _ = cli(["mmrec_jax", "--mode=stream", f"--workdir={run}", "--rollback=previous"])
    assert code == 0
    assert "Version 1 is in service (rolled back from version 2)" in " ".join(out.split())
    assert [record["score"] for record in listed()] != [record["score"] for record in newest]


def test_a_service_that_is_interrupted_while_it_waits_has_drawn_its_reports(streamed, shop, cli, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    for name in PLOTS:
        (streamed / "run" / name).unlink()
    monkeypatch.setattr(Service, "_wait", interrupted)
    code, _, err = cli(arguments(shop, streamed / "run", *FLAGS, f"--watch={streamed / 'in'}", only="words"))
    assert (code, "Interrupted" in err) == (130, True)
    assert all((streamed / "run" / name).exists() for name in PLOTS)


def test_the_more_windows_there_are_the_less_often_they_are_drawn():
    assert all(map(drawn_after, range(1, 101)))
    assert [n for n in range(100, 131) if drawn_after(n)] == [100, 110, 120, 130]
    assert [n for n in range(1000, 1201) if drawn_after(n)] == [1000, 1100, 1200]


def test_a_service_has_no_vectors_for_ids_that_will_come(shop, cli, tmp_path):
    flags = [*FLAGS, "--config.model.add_ids=True", f"--watch={tmp_path}"]
    code, _, err = cli(arguments(shop, tmp_path / "run", *flags, only="words"))
    assert (code, "model.add_ids: a service" in err) == (2, True), err


@pytest.mark.parametrize(("key", "value"), [("data.min_rating", 2), ("training.epochs", 3)])
def test_a_stream_goes_on_with_the_config_that_it_began_with(streamed, shop, cli, key, value):
    kept = (streamed / "run" / "config.json").read_bytes()
    changed = f"--config.{key}={value}"
    code, _, err = cli(arguments(shop, streamed / "run", *FLAGS, changed, f"--watch={streamed / 'in'}", only="words"))
    assert (code, f"\n  {key}: " in err) == (2, True), err
    assert (streamed / "run" / "config.json").read_bytes() == kept


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=stream", "--rollback=7"], "has no version 7; there is 1"),
        (["--mode=stream", "--rollback=best"], "give the number of a version, or previous"),
        (["--mode=train", "--rollback=1"], "--rollback is read by --mode=stream only"),
        (["--mode=stream", "--rollback=1", "--watch=in"], "--rollback is a command of its own"),
    ],
)
def test_mistakes_are_one_message(streamed, cli, flags, message):
    code, _, err = cli(["mmrec_jax", f"--workdir={streamed / 'run'}", *flags])
    assert (code, message in err) == (2, True), err


def test_a_roll_back_needs_the_workdir_of_a_run(cli, tmp_path):
    code, _, err = cli(["mmrec_jax", "--mode=stream", f"--workdir={tmp_path}", "--rollback=1"])
    assert (code, "needs the --workdir of a stream" in err) == (2, True)
