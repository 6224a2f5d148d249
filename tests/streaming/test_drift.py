"""Alarms when a figure leaves its usual range."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmrec_jax.streaming import drift
from mmrec_jax.streaming.drift import alarms, evenness

USUAL = [{"quality/NDCG@10": 0.10 + 0.002 * (n % 5), "missing/poster": 0.02, "load/title_1": 0.9} for n in range(12)]
TYPICAL = {"quality/NDCG@10": 0.102, "missing/poster": 0.025, "load/title_1": 0.88}


def found(figures: dict, before=USUAL, **options) -> list[str]:
    return [alarm.figure for alarm in alarms(13, figures, before, **options)]


def test_a_usual_window_gives_no_alarm():
    assert found(TYPICAL) == []


@pytest.mark.parametrize(
    ("figure", "value", "alarming"),
    [
        ("quality/NDCG@10", 0.05, True),
        ("quality/NDCG@10", 0.20, False),  # better than usual is no reason for alarm
        ("load/title_1", 0.5, True),
        ("load/title_1", 1.0, False),
        ("missing/poster", 0.4, True),
        ("missing/poster", 0.055, False),  # 3.5 points with 4 deviations of at least one point
    ],
)
def test_a_figure_is_alarming_on_the_sides_that_are(figure, value, alarming):
    assert found(TYPICAL | {figure: value}) == ([figure] if alarming else [])


def test_a_modality_that_is_suddenly_complete_is_alarming_too():
    before = [{"missing/poster": 0.5 + 0.01 * (n % 3)} for n in range(10)]
    assert found({"missing/poster": 0.0}, before) == ["missing/poster"]


def test_one_odd_window_among_the_last_does_not_widen_the_range():
    before = [*USUAL[:-1], USUAL[-1] | {"quality/NDCG@10": 0.9}]
    plain, odd = (alarms(13, {"quality/NDCG@10": 0.05}, past)[0] for past in (USUAL, before))
    assert odd.low == pytest.approx(plain.low, rel=0.1)  # a mean and a deviation would have moved by half


def test_a_range_needs_enough_windows_and_looks_at_the_last_ones_only():
    assert found({"quality/NDCG@10": 0.01}, USUAL[:4]) == []
    moved = [{"quality/NDCG@10": 0.5}] * 8
    assert found({"quality/NDCG@10": 0.3}, USUAL + moved, windows=8) == ["quality/NDCG@10"]
    assert found({"quality/NDCG@10": 0.3}, USUAL + moved, windows=20) == []


def test_windows_without_a_figure_are_passed_over():
    before = [each | {"quality/NDCG@10": math.nan} for each in USUAL[:6]] + USUAL[6:]
    assert alarms(13, {"quality/NDCG@10": 0.01}, before)[0].windows == 6
    assert found({"quality/NDCG@10": math.nan}) == []


def test_an_alarm_says_window_figure_value_and_range():
    text = str(alarms(13, {"missing/poster": 0.4}, USUAL)[0])
    assert "window 13: missing/poster is 0.4000, above its range of the last 12 windows, -0.0200 to 0.0600" in text


def test_evenness_is_1_for_equal_shares_and_falls_as_one_expert_takes_all():
    assert evenness(np.full(4, 0.25)) == pytest.approx(1)
    assert evenness(np.array([1.0])) == pytest.approx(1)
    assert evenness(np.array([1.0, 0, 0, 0])) == pytest.approx(0.25)
    assert evenness(np.array([3.0, 1.0])) == pytest.approx(evenness(np.array([0.75, 0.25])))
    assert math.isnan(evenness(np.zeros(3)))


def test_the_file_holds_each_alarm_once(tmp_path):
    path = tmp_path / drift.FILE
    assert drift.read(path) == []
    first, again = (alarms(13, {"missing/poster": value}, USUAL) for value in (0.4, 0.5))
    drift.note(path, first)
    drift.note(path, alarms(14, {"missing/poster": 0.4}, USUAL))
    drift.note(path, again)
    assert [(alarm["window"], alarm["value"]) for alarm in drift.read(path)] == [(14, 0.4), (13, 0.5)]
