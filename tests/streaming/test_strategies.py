"""Learners of a stream, the growth of a ladder along it, and what is reported."""

from __future__ import annotations

import csv
import io
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from rich.console import Console

from mmrec_jax.errors import ConfigError
from mmrec_jax.evaluation.config import EvaluationConfig
from mmrec_jax.evaluation.evaluate import EvaluationResult
from mmrec_jax.evaluation.ranking import MISS
from mmrec_jax.modes.stream import stream_learner
from mmrec_jax.streaming import growth, reports
from mmrec_jax.streaming.learner import Learner
from mmrec_jax.streaming.protocol import StreamRun, facts
from mmrec_jax.streaming.table import PaddedTable
from mmrec_jax.streaming.utilisation import with_evaluations
from mmrec_jax.training.manifest import checksums
from mmrec_jax.training.position import FitResult
from tests.streaming.conftest import ITEMS, learner, settings, states
from tests.streaming.test_protocol import lived

LADDER = {"system": "xsmoe", "only": "words", "fusion.kind": "add", "model.capacity": 2, "training.epochs": 1}


def experts(found):
    return [{rung: len(held) for rung, held in report["experts"].items()} for report in found]


@pytest.fixture(scope="module")
def grown(windows, tmp_path_factory):
    """A ladder of two slots a rung: full after the first window."""
    return lived(settings(**LADDER, **{"stream.threshold": 0.0}), tmp_path_factory.mktemp("grown"), windows)


def test_each_window_adds_an_expert_a_rung_and_trains_it_alone(grown):
    _, found, _ = grown
    rungs = ["words_1", "words_2"]
    assert experts(found) == [dict.fromkeys(rungs, 1), dict.fromkeys(rungs, 2), dict.fromkeys(rungs, 2)]
    for report in found[1:]:
        for held in report["experts"].values():
            assert sum(expert["trainable"] for expert in held) == 1
            assert sum(expert["utilisation"] for expert in held) == pytest.approx(1)
    assert [expert["born"] for expert in found[1]["experts"]["words_1"]] == [0, 1]
    # At capacity the least used one made room.
    assert len(found[1]["pruned"]) == len(rungs)
    assert {2} <= {expert["born"] for expert in found[2]["experts"]["words_1"]}
    assert found[1]["parameters"]["trainable"] == found[2]["parameters"]["trainable"]


def test_growth_compiles_nothing(grown):
    assert [report["recompilations"] for report in grown[1][1:]] == [0, 0]


@pytest.fixture
def untrained(monkeypatch):
    """Windows are neither trained nor tested on, which all has to be compiled; the rest is as ever."""

    def fit(task, frozen, stream, config, workdir, run, params, **options):
        used = {name: rung.experts["active"] for name, rung in growth.rungs(params).items()}
        measured = {f"utilisation/{name}": (active / active.sum()).tolist() for name, active in used.items()}
        entry = {"epoch": 1, "step": 1, "seconds": 0.0, "peak_memory_bytes": 0, "measured": measured}
        return FitResult(params, 1, 0.0, [entry], 1, False)

    monkeypatch.setattr("mmrec_jax.streaming.learner.fit", fit)
    monkeypatch.setattr(Learner, "test", lambda *arguments, **options: None)


FULL = LADDER | {"stream.threshold": 0.0, "model.capacity": 1}


@pytest.mark.long
def test_at_capacity_a_ladder_can_grow_which_compiles_anew(windows, tmp_path):
    config = settings(**FULL, **{"stream.at_capacity": "grow"})
    stream, found, _ = lived(config, tmp_path, windows[:3], last=3)
    assert [report["pruned"] for report in found] == [[], []]
    assert [now["words_1"] for now in experts(found)] == [1, 2]
    assert {rung.capacity for rung in growth.rungs(stream.params).values()} == {2}
    assert found[1]["recompilations"] > 0  # the arrays grew before the second training


@pytest.mark.parametrize(
    "rule", [{"stream.at_capacity": "stop"}, {"stream.at_capacity": "grow", "stream.expand": False}]
)
def test_a_ladder_can_stop_at_capacity_and_its_growth_be_switched_off(rule, windows, tmp_path, untrained):
    stream, found, _ = lived(settings(**FULL, **rule), tmp_path, windows[:3], last=3)
    assert [(report["pruned"], report["born"]) for report in found] == [([], []), ([], [])]
    assert [now["words_1"] for now in experts(found)] == [1, 1]
    assert {rung.capacity for rung in growth.rungs(stream.params).values()} == {1}


@pytest.mark.parametrize("name", ["frozen", "replay", "retrain_window", "retrain_all"])
def test_learners_train_on_what_they_say(name, windows, tmp_path, untrained):
    plain = settings("sasrec", **{"stream.learner": name, "stream.replay": 0.5, "training.epochs": 1})
    _, found, _ = lived(plain, tmp_path, windows[:3], last=3)
    rows = [report["training"].get("rows", 0) for report in found]
    first, second = rows
    assert (
        second
        == {"frozen": 0, "replay": first + round(first / 2), "retrain_window": first, "retrain_all": 2 * first}[name]
    )
    if name == "frozen":
        assert found[1]["parameters"]["trainable"] == 0


def test_reports_say_what_happened(grown, tmp_path):
    _, found, _ = grown
    summary = reports.summary(found, "NDCG@5")
    assert summary["windows"] == 3
    assert summary["metrics"]["HR@5"] == pytest.approx(np.mean([r["test"]["metrics"]["HR@5"] for r in found]))
    own, last = (report["held_out"]["1"]["NDCG@5"] for report in (found[0], found[-1]))
    assert summary["forgetting"]["1"] == pytest.approx(own - last)
    assert set(summary["forgetting"]) == {"1", "2", "mean"}
    json.dumps(summary)
    lines = list(csv.DictReader(io.StringIO(reports.as_csv(found, "NDCG@5"))))
    assert list(lines[0])[:3] == ["window", "events", "items"]
    assert [line["forgetting NDCG@5"] for line in lines[:1]] == [""]
    assert float(lines[2]["forgetting NDCG@5"]) == pytest.approx(summary["forgetting"]["mean"])
    held = [part["HR@5"] for part in found[2]["held_out"].values()]
    assert float(lines[2]["held-out HR@5"]) == pytest.approx(np.mean(held))
    rungs = dict(told.split(":") for told in lines[1]["utilisation"].split())
    assert {rung: len(shares.split("/")) for rung, shares in rungs.items()} == {"words_1": 2, "words_2": 2}
    assert sum(map(float, rungs["words_1"].split("/"))) == pytest.approx(1, abs=2e-3)
    assert float(lines[1]["seconds test"]) == found[1]["seconds"]["test"]
    assert lines[2]["HR@5"] == str(found[2]["test"]["metrics"]["HR@5"])
    reports.plot_quality(found, tmp_path / "quality.png", ["HR@5", "NDCG@5"])
    reports.plot_experts(found, tmp_path / "experts.png")
    assert (tmp_path / "experts.png").stat().st_size > 10_000
    assert "words" in str(found[0]["experts"])
    with (console := Console(width=80, file=io.StringIO())).capture() as shown:
        console.print(reports.table(found, "t"))
    assert "NDCG@10" in shown.get()
    assert "…" not in shown.get()
    assert reports.table(found, "t").row_count == 4


def test_a_model_that_is_not_trained_any_more_forgets_nothing_however_many_items_come(windows, tmp_path):
    frozen = settings("sasrec", **{"stream.learner": "frozen", "training.epochs": 1})
    _, found, _ = lived(frozen, tmp_path, windows)
    assert [report["test"]["items"] for report in found] == [26, 33, 40]
    assert [report["held_out"]["1"]["items"] for report in found] == [19, 19, 19]
    assert found[-1]["held_out"]["2"]["items"] == 26
    assert reports.forgetting(found, "NDCG@5") == {"1": 0, "2": 0, "mean": 0}


def test_forgetting_is_told_of_windows_only_whose_items_are_all_remembered():
    def report(window, **held_out):
        return {"window": window, "held_out": {n: {"items": items, "HR@5": hr} for n, (items, hr) in held_out.items()}}

    found = [report(1, **{"1": (9, 0.5)}), report(2, **{"1": (9, 0.25), "2": (12, 0.5)})]
    assert reports.forgetting(found[:1], "HR@5") == {}
    assert reports.forgetting(found, "HR@5") == {"1": 0.25, "mean": 0.25}
    found.append(report(3, **{"1": (5, 0.75), "2": (12, 0.75), "3": (15, 0.5)}))
    assert reports.forgetting(found, "HR@5") == {"2": -0.25, "mean": -0.25}
    assert reports.forgetting([{"window": 1}], "HR@5") == {}


def test_forgetting_is_that_of_the_trainings_that_the_parameters_went_through():
    def report(window, hr, **more):
        return {"window": window, "held_out": {str(n): {"items": n, "HR@5": hr} for n in range(1, window + 1)}, **more}

    found = [report(1, 0.5), report(2, 0.75), report(3, 1.0), report(4, 0.25)]
    assert reports.forgetting(found, "HR@5") == {"1": 0.25, "2": 0.5, "3": 0.75, "mean": 0.5}
    back = {"rolled_back": 5, "rolled_back_to": {"version": 1, "experts": {}}}
    found[2] |= back  # what was tested then is version 1
    assert reports.forgetting(found, "HR@5") == {"1": 0.25, "mean": 0.25}
    found[3] |= back
    assert reports.forgetting(found, "HR@5") == {"1": -0.25, "mean": -0.25}  # of window 2's model
    found.append(report(5, 0.125))
    assert reports.forgetting(found, "HR@5") == {"1": 0.375, "mean": 0.375}


def test_after_a_roll_back_the_version_s_expert_is_crossed_out_and_not_another_in_its_slot():
    def expert(slot, born):
        return {"slot": slot, "born": born, "trainable": True, "utilisation": 0.5}

    report = {"window": 3, "experts": {"words_1": [expert(0, 0), expert(1, 2)]}}
    report["pruned"] = [{"rung": "words_1", "slot": 1, "utilisation": 0.1}]
    assert reports.pruned(report, "words_1") == [expert(1, 2)]
    report["rolled_back_to"] = {"version": 2, "experts": {"words_1": [expert(0, 0), expert(1, 1)]}}
    assert reports.pruned(report, "words_1") == [expert(1, 1)]
    assert reports.pruned(report, "words_2") == []


def test_a_table_beyond_its_capacity_is_doubled_and_keeps_its_rows():
    table = PaddedTable(states, 4)
    items = [f"i{n}" for n in range(ITEMS)]
    assert not table.add(items[:3])
    before = np.asarray(table.table.values["words"][0])
    assert table.add(items[3:11])
    assert table.capacity == 16
    after = np.asarray(table.table.values["words"][0])
    np.testing.assert_array_equal(after[:4], before[:4])
    np.testing.assert_array_equal(after[:12], np.asarray(states(items[:11]).values["words"][0]))
    assert not after[12:].any()
    assert not np.asarray(table.table.present["words"])[12:].any()
    assert table.first(11).num_rows == 12
    np.testing.assert_array_equal(np.asarray(table.first(3).values["words"][0]), before[:4])


def test_what_a_stream_does_not_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="warm_start is not read by --mode=stream"):
        learner(settings(warm_start="elsewhere"), tmp_path)


def test_the_papers_utilisation_counts_the_items_of_evaluations(windows, tmp_path):
    own = learner(settings(**LADDER, **{"model.experts": 2, "stream.utilisation": "paper"}), tmp_path)
    own.observe(windows[0])
    trained = own.train(1, None)
    batches = {rung: [0.9, 0.1] for rung in trained.utilisation}
    frozen = own.scorer(trained.params).frozen
    alone, some, many = (with_evaluations(own.task, trained.params, frozen, batches, n) for n in (0, 100, 10**9))
    for rung in batches:
        assert sum(trained.utilisation[rung]) == pytest.approx(1)
        assert alone[rung][0] < some[rung][0] < 0.9
        assert many[rung] == pytest.approx([0.9, 0.1], abs=1e-5)  # the items of an evaluation are lost among so many
        low, high = sorted((alone[rung][0], trained.utilisation[rung][0]))
        assert high - low < 0.2  # two young experts are used alike, in batches and out of them


def test_a_stream_that_forgets_is_one_that_begins_later(windows, tmp_path):
    long, late = (learner(settings(), tmp_path / name) for name in ("long", "late"))
    for window in windows[:3]:
        long.observe(window)
    late.observe(windows[2])
    long.forget(3)
    assert (long.memory.item_ids, long.memory.user_ids) == (late.memory.item_ids, late.memory.user_ids)
    np.testing.assert_array_equal(long.memory.events.windows, np.full(len(windows[2]), 3))
    np.testing.assert_array_equal(long.memory.events.items, late.memory.events.items)
    assert long.known.sum() == late.memory.num_items


def test_parameters_to_begin_with_do_not_depend_on_windows_that_came_since(windows, tmp_path):
    early, late = (learner(settings(**{"model.standardise": True}), tmp_path / name) for name in ("early", "late"))
    early.observe(windows[0])
    for window in windows[:3]:
        late.observe(window)
    assert late.memory.num_items > early.memory.num_items
    assert checksums(early.fresh()) == checksums(late.fresh())


def test_a_repeat_that_is_a_miss_counts_as_one_in_the_means_over_users():
    ranks, users = np.asarray([1, MISS, 3], np.int32), np.asarray([0, 0, 1], np.int32)
    config = EvaluationConfig(ks=(5,))
    result = EvaluationResult({"HR@5": 0, "NDCG@5": 0}, {}, {}, users, users, ranks, 1, 9, {}, config)
    assert facts(result)["by_user"] == {"HR@5": 0.75, "NDCG@5": 0.5}


def test_a_system_by_ids_gets_rows_for_items_that_come_beyond_its_table(untrained, windows, tmp_path):
    own = learner(settings("sasrec"), tmp_path, capacity=20)
    stream = StreamRun(own, say=lambda line: None)
    found = stream.run(windows[:1])
    stream.params = jax.tree.map(lambda leaf: leaf + 1, stream.params)  # as training may
    first = next(iter(jax.tree.leaves(stream.params["items"])))
    assert len(first) == 21
    found = stream.run(windows[1:3], first=2)
    stream.close()
    assert [report["items"] for report in found] == [19, 26, 33]
    assert own.capacity == 40
    table, fresh = (next(iter(jax.tree.leaves(params["items"]))) for params in (stream.params, own.fresh()))
    assert len(table) == len(fresh) == 41
    np.testing.assert_array_equal(table[:21], first)
    np.testing.assert_array_equal(table[21:], fresh[21:])
    assert not np.array_equal(table[1:21], fresh[1:21])


IDS = {"model.add_ids": True}


def test_vectors_of_ids_need_a_row_for_each_item_from_the_first_window_on(windows, tmp_path):
    own = learner(settings(**IDS), tmp_path, capacity=20)
    own.observe(windows[0])
    with pytest.raises(ConfigError, match=r"window 2: model.add_ids cannot do with more .* stream.item_capacity=20"):
        own.observe(windows[1])
    run = SimpleNamespace(config=settings(**IDS, **{"stream.item_capacity": 20}))
    with pytest.raises(ConfigError, match=r"item_capacity=20: model.add_ids needs a row for each of the 40 items"):
        stream_learner(run, range(40), "")


def test_vectors_of_ids_keep_their_items(windows, tmp_path):
    own = learner(settings(**IDS), tmp_path)
    for window in windows[:2]:
        own.observe(window)
    own.forget(1)
    with pytest.raises(ConfigError, match=r"model.add_ids cannot do with items that are forgotten"):
        own.forget(2)
