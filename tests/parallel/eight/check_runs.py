"""Runs from the command line on a mesh: the same numbers as on one device, and checkpoints for either."""

from __future__ import annotations

import json

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.tiny_run import arguments

ONE = ("--config.parallel.data=1",)
FLAGS = (
    "--config.baselines=()",
    "--config.show_users=0",
    "--config.evaluation.bootstrap=0",
    "--config.user.dropout=0.3",
    "--config.model.add_ids=True",  # a table whose rows no mesh here divides
)


@pytest.fixture(scope="module")
def one(shop, tmp_path_factory):
    """A run on one device."""
    from mmrec_jax.main import command

    workdir = tmp_path_factory.mktemp("one") / "run"
    assert command(arguments(shop, workdir, *FLAGS, *ONE, only="words")) == 0
    return workdir


def metrics(workdir) -> pl.DataFrame:
    return pl.read_csv(workdir / "metrics.csv")


def same(found, expected) -> None:
    """Every metric of every epoch to the issue's bound; all users are in each validation, or they would not agree."""
    assert_frame_equal(metrics(found), metrics(expected), rel_tol=1e-5)
    ranks = [pl.read_parquet(workdir / "ranks_test.parquet") for workdir in (found, expected)]
    assert_frame_equal(*ranks)
    assert ranks[0]["user"].n_unique() == ranks[0].height == 40


@pytest.mark.long
def test_a_run_goes_on_with_another_number_of_devices(shop, one, tmp_path, cli):
    workdir = tmp_path / "run"
    topologies = [("--config.parallel.data=8",), ONE, ("--config.parallel.data=2", "--config.parallel.model=4")]
    for epochs, sizes in enumerate(topologies, 1):
        argv = arguments(shop, workdir, *FLAGS, *sizes, f"--config.training.epochs={epochs}", only="words")
        code, out, err = cli(argv)
        assert code == 0, out + err
    same(workdir, one)
    # And it is used in one process of any number of devices, like one of a single device.
    listed = []
    for folder in (workdir, one):
        out = tmp_path / f"{folder.parent.name}.json"
        code, _, err = cli(["", "--mode=recommend", f"--workdir={folder}", "--users=u01,u02", f"--out={out}"])
        assert code == 0, err
        listed.append(pl.read_json(out))
    assert_frame_equal(*listed, rel_tol=1e-4)  # scores of the float32 parameters above
    code, _, err = cli(["", "--mode=ab", f"--a={workdir}", f"--b={one}", f"--workdir={tmp_path / 'ab'}"])
    assert code == 0, err
    assert json.loads((tmp_path / "ab" / "ab.json").read_text())["wins"]["equal"] == 1


def test_a_batch_that_cannot_be_split_is_refused_with_the_remedy(shop, tmp_path, cli):
    code, _, err = cli(arguments(shop, tmp_path / "run", *FLAGS, "--config.training.batch_size=12"))
    assert code == 2
    assert "training.batch_size=12 cannot be split over 8 devices: choose a multiple of 8" in err
