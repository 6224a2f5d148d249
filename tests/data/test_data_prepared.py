"""Prepared directories are complete or absent, and are opened again as they were written."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmrec_jax.data import DataConfig, PreparedData, open_prepared, pipeline, prepare
from mmrec_jax.data.builder import USERS_PER_RECORD, UserHistories, read_histories, write_histories
from mmrec_jax.data.ragged import Ragged
from mmrec_jax.errors import DataError

LOG = "user,item,timestamp\n" + "".join(f"{u},{i},{i}\n" for u in "ab" for i in range(1, 5))
ITEMS = "item,title,genre\n1,One,x\n2,,y\n3,Three,z\n4,Four,\n5,Five,x\n"


def directories(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.is_dir())


def test_the_same_source_and_config_are_only_opened(tables, tmp_path, monkeypatch):
    config = tables(LOG, ITEMS)
    first = prepare(config, tmp_path / "out")
    monkeypatch.setattr(pipeline, "read_source", None)  # reading again would fail
    again = prepare(config, tmp_path / "out")
    for field in dataclasses.fields(PreparedData):
        ours, theirs = getattr(first, field.name), getattr(again, field.name)
        if isinstance(ours, Ragged):
            assert ours.values.tolist() == theirs.values.tolist()
            assert ours.offsets.tolist() == theirs.offsets.tolist()
        else:
            assert np.array_equal(np.asarray(ours), np.asarray(theirs)), field.name
    assert directories(tmp_path / "out") == [first.fingerprint[:16]]


def test_another_config_or_changed_source_gets_a_directory_of_its_own(tables, tmp_path):
    prints = [prepare(tables(LOG, ITEMS), tmp_path / "out").fingerprint]
    prints.append(prepare(tables(LOG, ITEMS, max_length=3), tmp_path / "out").fingerprint)
    prints.append(prepare(tables(LOG + "b,5,9\n", ITEMS), tmp_path / "out").fingerprint)
    prints.append(prepare(tables(LOG, ITEMS.replace("Four", "Vier")), tmp_path / "out").fingerprint)
    assert directories(tmp_path / "out") == sorted(name[:16] for name in prints)
    assert len(set(prints)) == 4
    with pytest.raises(DataError, match="holds 4 prepared data sets"):
        open_prepared(tmp_path / "out")


def test_the_fingerprint_does_not_depend_on_where_the_source_lies(tables, tmp_path):
    config = tables(LOG, ITEMS)
    here = prepare(config, tmp_path / "out").fingerprint
    (tmp_path / "source").rename(tmp_path / "elsewhere")
    moved = dataclasses.replace(config, source=str(tmp_path / "elsewhere"))
    assert prepare(moved, tmp_path / "out").fingerprint == here


def test_what_a_killed_preparation_left_is_made_anew(tables, tmp_path, monkeypatch):
    config = tables(LOG, ITEMS)

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, tmp_path / "out")
    (leftover,) = directories(tmp_path / "out")
    assert leftover.startswith("unfinished-")
    with pytest.raises(DataError, match="no prepared data set"):
        open_prepared(tmp_path / "nothing")
    prepared = prepare(config, tmp_path / "out")
    assert directories(tmp_path / "out") == [prepared.fingerprint[:16]]
    assert prepared.history("a").tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("damage", ["manifest.json", "catalogue.parquet", "users.parquet", "cut", "bit", "count"])
def test_a_damaged_directory_says_that_it_is_to_be_removed(tables, tmp_path, damage):
    directory = prepare(tables(LOG, ITEMS), tmp_path / "out").directory
    if damage == "count":
        manifest = json.loads((directory / "manifest.json").read_text())
        manifest["events"]["train"] += 1
        (directory / "manifest.json").write_text(json.dumps(manifest))
    elif damage in ("cut", "bit"):
        (path,) = directory.rglob("*train.array_record*")
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content if damage == "bit" else content[: len(content) // 2])
    else:
        (directory / damage).write_bytes(b"{")
    with pytest.raises(DataError, match=r"is damaged .*remove it"):
        open_prepared(directory)


def test_titles_fall_back_to_the_item_id_and_columns_stay_as_in_the_file(tables, tmp_path):
    prepared = prepare(tables(LOG, ITEMS), tmp_path / "out")
    assert prepared.titles([0, 1, 2]) == ["", "One", "2"]
    assert prepared.catalogue.columns == ["item", "title", "genre"]
    assert prepared.catalogue["genre"].to_list() == ["x", "y", "z", ""]
    assert prepared.popularity.tolist() == [0, 2, 2, 0, 0]


def test_a_user_that_is_not_there_is_an_error(tables, tmp_path):
    with pytest.raises(DataError, match="user 'z' is not in"):
        prepare(tables(LOG, ITEMS), tmp_path / "out").history("z")


def test_preparing_is_silent(tables, tmp_path, capfd):
    prepare(tables(LOG, ITEMS), tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_histories_of_many_records_come_back_in_order(tmp_path):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 4, 2 * USERS_PER_RECORD + 5)
    rows = Ragged.of_lengths(rng.integers(1, 100, lengths.sum()), lengths)
    write_histories(tmp_path, {"train": rows})
    back = read_histories(tmp_path)["train"]
    assert np.array_equal(back.values, rows.values)
    assert np.array_equal(back.offsets, rows.offsets)
    assert back.values.dtype == np.int32


def test_two_processes_that_prepare_at_once_agree(tables, tmp_path):
    config = tables(LOG, ITEMS)
    script = (
        "import sys; from mmrec_jax.data import DataConfig, prepare;"
        "print(prepare(DataConfig(source=sys.argv[1], user_core=0), sys.argv[2]).history('a').tolist(),"
        "'tensorflow' in sys.modules)"
    )
    command = [sys.executable, "-c", script, config.source, str(tmp_path / "out")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    # Preparing and reading must do without TensorFlow: hence the False.
    assert [process.communicate()[0] for process in running] == ["[1, 2, 3, 4] False\n"] * 2
    assert len(directories(tmp_path / "out")) == 1


def test_importing_the_room_leaves_the_slow_libraries_out():
    script = (
        "import sys, mmrec_jax.data;"
        "print([m for m in ('jax', 'flax', 'grain', 'tensorflow_datasets', 'tensorflow', 'pandas')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "[]\n"


def test_the_sample_is_prepared(tmp_path):
    sample = Path(pipeline.__file__).parent.parent / "samples" / "movielens_small"
    if not (sample / "interactions.parquet").is_file():
        pytest.skip("the sample is not built: python -m mmrec_jax.samples.build")
    prepared = prepare(DataConfig(), tmp_path)
    assert prepared.num_users == 610
    assert len(prepared.examples("test")) == 610


def test_builders_of_earlier_windows_are_not_kept(tmp_path):
    histories = {"train": Ragged.of_lengths(np.asarray([1, 2, 3], np.int32), np.asarray([2, 1]))}
    for name in ("one", "two"):
        write_histories(tmp_path / name, histories)
        read_histories(tmp_path / name)
    gc.collect()
    assert not [found for found in gc.get_objects() if isinstance(found, UserHistories)]
