"""`--mode=ab`: two finished runs on the same users."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from mmrec_jax.comparison.ab import overlap, wins
from mmrec_jax.evaluation.ranking import MISS
from tests.tiny_dataset import USERS, write_dataset
from tests.tiny_run import CONFIG, arguments


@pytest.fixture
def ab(cli, tmp_path):
    def run(first, second):
        code, out, err = cli(
            ["mmrec_jax", "--mode=ab", f"--a={first}", f"--b={second}", f"--workdir={tmp_path / 'ab'}"]
        )
        return code, out, err, tmp_path / "ab"

    return run


def test_a_run_does_not_differ_from_itself(ab, trained):
    code, _, err, workdir = ab(trained, trained)
    assert code == 0, err
    found = json.loads((workdir / "ab.json").read_text())
    assert {value["mean"] for value in found["differences"].values()} == {0}
    assert {value["p_value"] for value in found["differences"].values()} == {1}
    assert found["overlap"] == {"shared": 1, "same_first": 1, "same_items": 1}
    assert (found["wins"]["equal"], found["wins"]["a ranks higher"], found["wins"]["only b hits@10"]) == (1, 0, 0)
    for parts in found["slices"].values():
        assert sum(part["users"] for part in parts.values()) == USERS
        assert {value["mean"] for part in parts.values() for value in part["differences"].values()} == {0}


def test_a_difference_is_that_of_the_ranks_which_both_runs_wrote(ab, plain):
    first, second = plain / "runs/words/seed_0", plain / "runs/layers/seed_1"
    code, out, err, workdir = ab(first, second)
    assert code == 0, err
    found = json.loads((workdir / "ab.json").read_text())
    a, b = (
        pl.read_parquet(place / "ranks_test.parquet").sort("user")["rank"].fill_null(MISS).to_numpy()
        for place in (first, second)
    )
    assert found["differences"]["HR@5"]["mean"] == pytest.approx(np.mean(a <= 5) - np.mean(b <= 5))
    assert found["wins"]["a ranks higher"] == np.mean(a < b)
    # The runs have no resamples of their own; 40 users leave room on both sides.
    assert found["differences"]["MRR@5"]["low"] < found["differences"]["MRR@5"]["high"]
    assert "# Offline A/B" in (workdir / "ab.md").read_text()
    assert "popularity: head" in out


@pytest.fixture
def trained_with(trained, shop, cli, tmp_path):
    """Trains a run with the states of `trained` and these flags: -> its workdir."""

    def train(*flags):
        place = tmp_path / "other"
        own = (f"--config.store={trained / 'store'}", "--config.training.epochs=1")
        quiet = ("--config.baselines=()", "--config.show_users=0")
        assert cli(arguments(shop, place, *flags, *own, *quiet))[0] == 0
        return place

    return train


def test_runs_on_other_users_are_refused(ab, trained, trained_with, tmp_path):
    data = write_dataset(tmp_path / "data")
    log = pl.read_csv(data / "interactions.csv")
    log.filter(pl.col("user") != "u03").write_csv(data / "interactions.csv")
    code, _, err, _ = ab(trained, trained_with(f"--config.data.source={data}"))
    assert code == 2
    assert "users: 40 and 39, 'u03' only in the first" in err


def test_a_run_on_shorter_histories_is_refused(ab, trained, trained_with):
    other = trained_with("--config.data.max_length=5")
    code, _, err, _ = ab(trained, other)
    assert code == 2
    assert f"{trained} and {other} cannot be compared user by user" in " ".join(err.split())
    assert "items left out of the ranking for user 'u00'" in err
    assert "settings: data.max_length=0 and 5" in err
    assert "Train one of them again with the `data` of the other" in err


def test_what_is_missing_is_said(ab, cli, tmp_path):
    code, _, err = cli(["mmrec_jax", "--mode=ab", f"--a={tmp_path}"])
    assert (code, "ab needs --a=DIR and --b=DIR" in err) == (2, True)
    code, _, err = cli(["mmrec_jax", "--mode=ab", f"--a={tmp_path}", f"--b={tmp_path}", f"--config={CONFIG}:x"])
    assert (code, "--config is not read by --mode=ab" in err) == (2, True)
    code, _, err, _ = ab(tmp_path, tmp_path)  # an empty folder
    assert (code, "is no workdir of a run" in err) == (2, True)


def test_wins_are_shares_of_the_users():
    found = wins(np.array([1, 11, 3, MISS]), np.array([2, 10, 3, MISS]), 10)
    assert found == {
        "a ranks higher": 0.25,
        "b ranks higher": 0.25,
        "equal": 0.5,
        "only a hits@10": 0,
        "only b hits@10": 0.25,
        "both hit@10": 0.5,
    }


def test_overlap_counts_items_whatever_their_places_and_no_filling():
    first = np.array([["a", "b", "c"], ["a", "b", ""], ["a", "b", "c"]])
    second = np.array([["c", "a", "x"], ["b", "a", ""], ["x", "y", "z"]])
    found = overlap(first, second)
    assert found["shared"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["same_first"] == 0
    assert found["same_items"] == pytest.approx(1 / 3)
