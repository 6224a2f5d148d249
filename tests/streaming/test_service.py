"""A model that is kept alive: windows arrive, versions are put in service, and kills change nothing."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mmrec_jax.evaluation.evaluate import EvaluationResult
from mmrec_jax.evaluation.metrics import metrics
from mmrec_jax.streaming import drift, examples, served
from mmrec_jax.streaming.arrivals import BadWindow
from mmrec_jax.streaming.intake import Intake
from mmrec_jax.streaming.journal import Journal
from mmrec_jax.streaming.learner import Learner, Trained
from mmrec_jax.streaming.service import Service, figures
from mmrec_jax.streaming.state import StreamCheckpoints
from mmrec_jax.streaming.versions import Versions
from mmrec_jax.training.manifest import checksums
from mmrec_jax.training.trees import host_copy
from tests.streaming.conftest import events, settings, states
from tests.streaming.test_protocol import timeless

WINDOWS = 4


class MadeUp(Intake):
    """Takes items in without encoding them: their states are made up."""

    def _encoded(self, frame, media_root):
        return np.ones(len(frame), bool)

    def _missing(self, events):
        return {"words": 0.0, "picture": 0.25}


class Scripted(Learner):
    """A model of one number, by how many places it ranks what is held out too low; training sets it as told.

    It is told for each window, and adds a hundredth of what it had before, so that every step of a stream shows in it.
    """

    script: dict[int, float] = {}  # noqa: RUF012 (set by the tests)

    def train(self, number, params):
        before = 0.0 if params is None else float(params["items"]["low"][0])
        low = np.float64(self.script.get(number, 5 + number) + before / 100)
        facts = {"epochs": 1, "seconds": 0.0, "step_seconds": 0.0, "peak_memory_bytes": 0, "targets": 1}
        return Trained({"items": {"low": np.asarray([low])}}, {}, facts)

    def scorer(self, params):
        return float(params["items"]["low"][0])

    def test(self, scorer, number, whole=False):
        found = examples.tested(self.memory.events, number, min_events=2, context="window", targets="last")
        ranks = np.random.default_rng(number).integers(1, 8, len(found)) + round(scorer)
        config, empty = self.config.evaluation, {}
        values = metrics(ranks, config.ks)
        return EvaluationResult(values, empty, empty, found.users, found.targets, ranks, 0, 1, empty, config)

    held_out = test


def config(**changes):
    quick = {"service.poll_seconds": 0.01, "service.settle_seconds": 0, "service.idle_seconds": 1e-6}
    return settings(**quick | {"evaluation.bootstrap": 50} | changes)


def write(folder: Path, windows) -> None:
    folder.mkdir(exist_ok=True)
    for window in windows:
        frame = window.events.rename({"time": "timestamp"}).with_columns(title=pl.col("item"))
        frame.write_csv(folder / f"{window.name}.csv")


def serviced(workdir: Path, folder: Path, said=None, **changes) -> Service:
    """A service, not started yet."""
    own = config(**changes)
    workdir.mkdir(exist_ok=True)
    versions = Versions(workdir)

    def publish(version, params, reason, documents, after):
        return versions.promote(version, params, {"system": "iisan"}, reason=reason, documents=documents, after=after)

    return Service(
        own,
        workdir,
        folder,
        MadeUp(own.data, own.cached, own.extraction, "", own.service.on_bad_window == "skip"),
        lambda fingerprint, capacity: Scripted(own, workdir, states, capacity, {"data": fingerprint}),
        publish,
        lambda reports: None,
        (said if said is not None else []).append,
        sleep=lambda seconds: None,
    )


def numbers(workdir: Path, own: Service, reports):
    """All that must not depend on kills: parameters, versions, reports, alarms, what is served, the journal."""
    versions, state = Versions(workdir), served.read(workdir)
    return {
        "params": checksums(host_copy(own.living.params)),
        "versions": {n: checksums(versions.parameters(n)) for n in versions.numbers()},
        "changes": [(change.version, change.reason) for change in versions.changes()],
        "reports": timeless(reports),
        "alarms": drift.read(workdir / drift.FILE),
        "served": (state.window, state.users.to_list(), state.catalogue.rows(), state.events.values.tolist()),
        "journal": [entry.name for entry in Journal(workdir).entries],
    }


def lived(workdir: Path, folder: Path, said=None, **changes):
    own = serviced(workdir, folder, said, **changes)
    reports = own.run()
    return numbers(workdir, own, reports)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory in which four windows lie."""
    path = tmp_path_factory.mktemp("watched") / "in"
    write(path, events(WINDOWS))
    return path


ALWAYS = {"service.promote": "always"}


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    return lived(tmp_path_factory.mktemp("service") / "run", folder, **ALWAYS)


def test_every_window_is_trained_on_and_every_model_tested_on_the_next(undisturbed):
    reports = undisturbed["reports"]
    assert [report["window"] for report in reports] == [1, 2, 3, 4]
    assert [report["test"]["window"] for report in reports[:-1]] == [2, 3, 4]
    assert undisturbed["journal"] == ["w1", "w2", "w3", "w4"]


def test_the_first_model_is_in_service_at_once_and_later_ones_when_they_were_compared(undisturbed):
    assert [version for version, _ in undisturbed["changes"]] == [1, 2, 3]
    assert undisturbed["changes"][0][1] == "the first"
    promotions = [report["promotion"] for report in undisturbed["reports"][:-1]]
    assert [(found["version"], found["before"]) for found in promotions] == [(1, None), (2, 1), (3, 2)]
    assert promotions[1]["difference"]["mean"] == pytest.approx(promotions[1]["candidate"] - promotions[1]["serving"])


def test_what_is_served_knows_the_newest_window(undisturbed):
    window, users, catalogue, values = undisturbed["served"]
    assert (window, len(catalogue)) == (4, 40)
    assert len(users) == 16 + 4 * 8
    assert len(values) == WINDOWS * 24 * 8


KILLS = [
    (Journal, "_add", 1),
    (served.Served, "write", 1),
    (StreamCheckpoints, "save", 1),
    (Versions, "_put_in_service", 1),
    (served.Served, "write", 1),
    (StreamCheckpoints, "save", 2),
    (drift, "note", 1),
    (Journal, "_add", 1),
    (Versions, "promote", 1),
    (Versions, "_put_in_service", 1),
    (drift, "note", 1),
]
"""What is killed in its n-th call after a start: one after another, all over the stream."""


@pytest.mark.parametrize("after", [False, True], ids=["before it is done", "after it is done"])
def test_killed_at_every_moment_the_service_ends_with_the_same_numbers(
    after, folder, undisturbed, tmp_path, monkeypatch
):
    kills = 0
    for where, name, times in KILLS:
        count, original = itertools.count(1), getattr(where, name)

        def killed(*arguments, count=count, original=original, times=times, **options):
            last = next(count) == times
            result = None if last and not after else original(*arguments, **options)
            if last:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patched:
            patched.setattr(where, name, killed)
            try:
                lived(tmp_path / "run", folder, **ALWAYS)
            except KeyboardInterrupt:
                kills += 1
    assert kills >= 9, "the others come when the stream is at its end"
    found = lived(tmp_path / "run", folder, **ALWAYS)
    for key, value in undisturbed.items():
        assert found[key] == value, key


def test_a_window_that_arrives_later_is_gone_on_with(folder, undisturbed, tmp_path):
    watched = tmp_path / "in"
    for window in events(WINDOWS):
        write(watched, [window])
        found = lived(tmp_path / "run", watched, **ALWAYS)
        for path in watched.iterdir():
            path.unlink()  # the stream has its own copy
    assert found["params"] == undisturbed["params"]
    assert found["reports"] == undisturbed["reports"]


def test_a_model_that_is_worse_is_not_put_in_service(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "script", {1: 0, 2: 50, 3: 0})
    said = []
    found = lived(tmp_path / "run", folder, said)
    assert [version for version, _ in found["changes"]] == [1, 3]
    kept = found["reports"][1]["promotion"]
    assert (kept["promoted"], kept["before"]) == (False, 1)
    assert kept["difference"]["high"] < 0
    assert any("version 2 is not put in service, version 1 stays (worse: NDCG@5 -" in line for line in said)


def test_after_a_roll_back_the_next_window_begins_with_that_version(folder, tmp_path):
    watched = tmp_path / "in"
    write(watched, events(3))
    lived(tmp_path / "run", watched, **ALWAYS)
    Versions(tmp_path / "run").roll_back(1)
    write(watched, events(4))
    said = []
    found = lived(tmp_path / "run", watched, said, **ALWAYS)
    first = float(Versions(tmp_path / "run").parameters(1)["items"]["low"][0])
    assert found["params"] == checksums({"items": {"low": np.asarray([9 + first / 100])}})
    assert found["reports"][2]["promotion"] == {
        "promoted": False,
        "reason": "rolled back to this version",
        "version": 1,
    }
    assert any("begins with version 1" in line for line in said)
    assert lived(tmp_path / "run", watched, **ALWAYS) == found, "a roll-back is followed once"


def test_a_roll_back_that_comes_while_a_candidate_is_compared_wins(tmp_path, monkeypatch):
    watched, said, promote = tmp_path / "in", [], Versions.promote

    def meanwhile(self, version, *arguments, **options):
        if version == 3:
            self.roll_back()
        return promote(self, version, *arguments, **options)

    monkeypatch.setattr(Versions, "promote", meanwhile)
    write(watched, events(4))
    found = lived(tmp_path / "run", watched, said, **ALWAYS)
    assert [(version, reason) for version, reason in found["changes"]][2:] == [(1, "rolled back from version 2")]
    reason = "version 1 was rolled back to meanwhile"
    assert found["reports"][2]["promotion"] == {"promoted": False, "reason": reason, "version": 3, "before": 1}
    assert f"version 3 is not put in service: {reason}" in said
    assert lived(tmp_path / "run", watched, **ALWAYS) == found
    write(watched, events(5))
    found = lived(tmp_path / "run", watched, said, **ALWAYS)
    assert "window 5: begins with version 1, which was rolled back to" in said
    assert found["changes"][-1][0] == 1


BAD = {
    "empty": pl.DataFrame({"user": [], "item": [], "timestamp": [], "title": []}),
    "early": pl.DataFrame({"user": ["a", "a"], "item": ["i1", "i2"], "timestamp": [1, 2], "title": ["", ""]}),
    "other columns": pl.DataFrame({"who": ["a"], "item": ["i1"], "timestamp": [9_000], "title": [""]}),
    "one event a user": pl.DataFrame(
        {"user": ["a", "b"], "item": ["i1", "i2"], "timestamp": [9_000, 9_001], "title": ["", ""]}
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_window_stops_the_stream_which_goes_on_when_it_is_taken_away(kind, folder, tmp_path):
    watched = tmp_path / "in"
    write(watched, events(2))
    lived(tmp_path / "run", watched)
    BAD[kind].write_csv(watched / "w2b.csv")
    with pytest.raises(BadWindow, match="Window w2b: "):
        lived(tmp_path / "run", watched)
    (watched / "w2b.csv").unlink()
    assert lived(tmp_path / "run", watched)["journal"] == ["w1", "w2"]


@pytest.mark.parametrize("skips", [False, True])
def test_items_that_cannot_join_the_catalogue_are_refused_before_the_window_is_taken_in(skips, tmp_path):
    watched, said = tmp_path / "in", []
    changes = {"service.on_bad_window": "skip"} if skips else {}
    write(watched, events(3))
    described = pl.DataFrame({"item": [f"i{number}" for number in range(40)], "title": [["a"]] * 40})
    described.write_parquet(watched / "w3.items.parquet")
    message = "Window w3: column 'title' of its items holds lists, and text in the windows before"
    if skips:
        lived(tmp_path / "run", watched, said, **changes)
        assert any(line.startswith(f"Skipped. {message}") for line in said)
    else:
        with pytest.raises(BadWindow, match=message):
            lived(tmp_path / "run", watched)
    assert [entry.name for entry in Journal(tmp_path / "run").accepted] == ["w1", "w2"]
    described.with_columns(title=pl.col("item")).write_parquet(watched / "w3.items.parquet")
    lived(tmp_path / "run", watched, said, **changes)
    assert [entry.name for entry in Journal(tmp_path / "run").accepted] == ["w1", "w2", "w3"]


@pytest.mark.parametrize("kind", ["early", "one event a user"])
def test_after_a_refusal_a_windows_items_are_encoded_anew(kind, tmp_path):
    watched = tmp_path / "in"
    write(watched, events(2))
    lived(tmp_path / "run", watched)
    BAD[kind].write_csv(watched / "w2b.csv")
    own = serviced(tmp_path / "run", watched)
    own.intake = dataclasses.replace(own.intake, attempt=tmp_path / "encoding")
    own.intake.attempt.write_text("under way")
    with pytest.raises(BadWindow):
        own.run()
    assert not own.intake.attempt.exists()


@pytest.mark.parametrize(("each", "usable"), [(2, False), (4, True)])
def test_a_window_of_known_users_is_refused_if_nothing_in_it_validates(each, usable, folder, tmp_path):
    watched, reading_back = tmp_path / "in", {"stream.context": "all", "service.on_bad_window": "skip"}
    write(watched, events(2))
    users, items = ["u1"] * each, [f"i{number}" for number in range(each)]  # 0.15 of 2 events is none, of 4 is one
    frame = pl.DataFrame({"user": users, "item": items, "timestamp": [9_000 + n for n in range(each)], "title": items})
    frame.write_csv(watched / "w3.csv")
    said = []
    lived(tmp_path / "run", watched, said, **reading_back)
    refused = [line for line in said if "w3: none of its 2 events can be validated with" in line]
    assert len(refused) == (not usable)
    assert [entry.number for entry in Journal(tmp_path / "run").entries] == [1, 2, 3 if usable else None]


def test_bad_windows_are_skipped_and_told_once_where_the_config_says_so(folder, undisturbed, tmp_path):
    watched, said = tmp_path / "in", []
    write(watched, events(WINDOWS))
    for number, frame in enumerate(BAD.values()):
        frame.write_csv(watched / f"w2{'abcd'[number]}.csv")
    (watched / "w2e.csv").write_bytes((watched / "w2.csv").read_bytes())
    (watched / "w2f.csv").write_text("user,item,timestamp\nu1,i1,29")
    skipping = {**ALWAYS, "service.on_bad_window": "skip", "service.patience_seconds": 0}
    found = lived(tmp_path / "run", watched, said, **skipping)
    assert found["params"] == undisturbed["params"]
    assert found["reports"] == undisturbed["reports"]
    assert [line.split(":")[0] for line in said if line.startswith("Skipped")] == [
        f"Skipped. Window w2{letter}" for letter in "abcdef"
    ]
    again = []
    lived(tmp_path / "run", watched, again, **skipping)
    assert not any(line.startswith("Skipped") for line in again)


@pytest.mark.long
def test_what_is_forgotten_is_removed_and_kills_change_nothing(tmp_path, monkeypatch):
    watched = tmp_path / "in"
    write(watched, events(7))
    forgetting = {**ALWAYS, "service.forget_after": 2, "service.keep_versions": 1, "service.history": 3}
    forgetting |= {"stream.forgetting": 1}
    found = lived(tmp_path / "run", watched, **forgetting)
    copies = {path.name for path in (tmp_path / "run" / "journal").glob("*.parquet")}
    assert copies == {f"00000{n}{kind}.parquet" for n in (6, 7) for kind in ("", ".items")}
    assert sorted(path.stem for path in (tmp_path / "run" / "ranks").iterdir()) == ["0006", "0007"]
    assert list(found["versions"]) == [5, 6]
    assert len(found["served"][1]) == 16 + 2 * 8, "users of the last two windows"

    save, count = StreamCheckpoints.save, itertools.count(1)

    def killed(*arguments):
        save(*arguments)
        if next(count) == 23:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StreamCheckpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            lived(tmp_path / "killed", watched, **forgetting)
    assert lived(tmp_path / "killed", watched, **forgetting) == found


def test_a_fall_in_quality_raises_an_alarm(tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "script", dict.fromkeys(range(1, 8), 0) | {6: 30})
    watched, said = tmp_path / "in", []
    write(watched, events(8))
    found = lived(tmp_path / "run", watched, said, **ALWAYS)
    assert [(alarm["window"], alarm["figure"]) for alarm in found["alarms"]] == [(7, "quality/NDCG@5")]
    assert any(line.startswith("ALARM: window 7: quality/NDCG@5 is") for line in said)


def test_figures_are_of_the_window_that_they_were_measured_on(undisturbed, tmp_path):
    reports = [
        {"window": 1, "experts": {"words_1": [{"utilisation": 0.5}, {"utilisation": 0.5}]}},
        {"window": 2, "experts": {"words_1": [{"utilisation": None}]}},
    ]
    reports[0]["test"] = {"window": 2, "examples": 3, "metrics": {"NDCG@5": 0.25}}
    entries = [type("Entry", (), {"missing": {"picture": share}}) for share in (0.1, 0.2)]
    assert figures(reports, entries, "NDCG@5") == [
        {"missing/picture": 0.1, "load/words_1": 1.0},
        {"missing/picture": 0.2, "quality/NDCG@5": 0.25},
    ]
