"""`--mode=inspect`: what a place holds, in words."""

from __future__ import annotations

import shutil

import pytest

from tests.tiny_dataset import EVENTS, USERS, write_sequences
from tests.tiny_run import CONFIG


@pytest.fixture
def inspect(cli):
    """Calls the mode; the output's line breaks and boxes are taken away."""

    def run(*flags):
        code, out, err = cli(["mmrec_jax", *flags, "--mode=inspect"])
        assert max(map(len, out.splitlines()), default=0) <= 80
        return code, " ".join(out.replace("│", " ").split()), err

    return run


def test_a_workdir_is_shown_with_its_data_store_results_and_checkpoints(inspect, trained):
    code, out, _ = inspect(f"--path={trained}")
    assert code == 0
    for part in (
        "run shop, system crossan",
        "30 items",
        "no medium 1 0",
        "results.json, test split",
        f"checked: {USERS * EVENTS} interactions",
        "catalogue columns: item, title, about, picture",
        "step 9: sound",
        "newest: 9 steps, 3 epochs of 3 steps; seed 0",
        "modality words: width 24, layers 0, 2, 3, pooling mean",
    ):
        assert part in out
    assert inspect(f"--workdir={trained}")[1] == out


def test_prepared_data_a_store_and_checkpoints_are_shown_on_their_own(inspect, trained):
    assert "training events a user: 5 to 5, median 5" in inspect(f"--path={trained / 'data'}")[1]
    assert "backbone" in inspect(f"--path={trained / 'store'}")[1]
    assert "best: step" in inspect(f"--path={trained / 'checkpoints'}")[1]


def test_a_damaged_checkpoint_is_named(inspect, trained, tmp_path):
    place = shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    for file in (path for path in (place / "step_9").rglob("*") if path.is_file()):
        file.write_bytes(b"")
    code, out, _ = inspect(f"--path={place}")
    assert code == 0
    assert "step_9isdamaged" in out.replace(" ", "")  # a long path is broken anywhere
    assert "step 6: sound" in out


def test_raw_data_is_shown_with_the_checks_counts(inspect, shop, tmp_path):
    code, out, _ = inspect(f"--path={shop / 'data'}")
    assert code == 0
    for part in (
        "layout tables: interactions.csv, items.csv",
        "bad rows: none",
        "events of a user: 7 to 7, median 7",
        "items without any event: 0 of 30",
        "picture String 29 pictures/i01.png",
    ):
        assert part in out
    bad = shutil.copytree(shop / "data", tmp_path / "data")
    with open(bad / "interactions.csv", "a", encoding="utf-8") as file:
        file.write("u01,i99,5000\nu01,i01,-3\n")
    code, out, _ = inspect(f"--path={bad}")
    assert code == 0
    assert "bad rows: 1 x interactions.csv: item is not in items.csv" in out
    assert "negative" in out
    assert "unless data.on_bad_row='skip'" in out


def test_other_layouts_and_column_names_are_read_as_the_config_says(inspect, shop, tmp_path):
    assert "layout sequences" in inspect(f"--path={write_sequences(tmp_path / 'sequences')}")[1]
    own = shutil.copytree(shop / "data", tmp_path / "own")
    log = own / "interactions.csv"
    log.write_text(log.read_text().replace("user,item,timestamp", "who,what,when", 1))
    code, _, err = inspect(f"--path={own}")
    assert code == 2
    assert "data.timestamp_column" in err
    names = {"user_column": "who", "item_column": "what", "timestamp_column": "when"}
    flags = [f"--config.data.{key}={value}" for key, value in names.items()]
    code, out, _ = inspect(f"--config={CONFIG}:{shop}", f"--path={own}", *flags)
    assert code == 0
    assert "bad rows: none" in out


def test_places_that_hold_nothing_are_one_message(inspect, tmp_path):
    for flags, message in (
        ([], "inspect needs --path"),
        ([f"--path={tmp_path / 'gone'}"], "no such directory"),
        ([f"--path={tmp_path}"], "no raw data either"),
        (["--path=memory://gone/"], "no hidden-state store"),
        (["--path=sample:gone"], "no sample of this package"),
    ):
        code, _, err = inspect(*flags)
        assert (code, message in err) == (2, True), err
        assert "Traceback" not in err
