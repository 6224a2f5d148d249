"""Versions that were promoted, the one in service, roll-back, and what a kill leaves."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest

from mmrec_jax.errors import CheckpointError
from mmrec_jax.streaming.versions import Versions
from mmrec_jax.training import load_params

DESCRIPTION = {"system": "toy", "data": "stream"}


def params(value: float) -> dict:
    return {"items": {"kernel": np.full((3, 2), value, np.float32)}}


def promote(versions: Versions, *numbers: int) -> None:
    for number in numbers:
        versions.promote(number, params(number), DESCRIPTION, reason="better")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workdir with versions 1, 2, 4 and 5."""
    workdir = tmp_path_factory.mktemp("versions")
    (workdir / "store").mkdir()
    versions = Versions(workdir)
    promote(versions, 1, 2, 4)
    versions.promote(
        5, params(5), DESCRIPTION, reason="better", documents={"config.json": {"a": 1}}, links={"store": "../../store"}
    )
    return workdir


@pytest.fixture
def versions(made, tmp_path) -> Versions:
    shutil.copytree(made, tmp_path / "run", symlinks=True)
    return Versions(tmp_path / "run")


def value(versions: Versions, version: int) -> float:
    return float(versions.parameters(version)["items"]["kernel"][0, 0])


def test_the_last_promoted_version_is_in_service_and_every_one_stays_loadable(versions):
    assert versions.in_service() == 5
    assert [value(versions, number) for number in versions.numbers()] == [1, 2, 4, 5]
    assert [change.version for change in versions.changes()] == [1, 2, 4, 5]


def test_a_version_is_a_directory_with_its_documents_links_and_description(versions):
    path = versions.path(5)
    assert versions.document(5, "config.json") == {"a": 1}
    with pytest.raises(CheckpointError, match=r"utilisation.json cannot be read"):
        versions.document(5, "utilisation.json")
    assert (path / "store").resolve() == versions.directory.parent / "store"
    assert load_params(path)[1]["run"] == DESCRIPTION


def test_rolling_back_goes_to_the_version_before_and_again_to_the_one_before_that(versions):
    assert versions.roll_back().version == 4
    assert versions.roll_back().version == 2
    promote(versions, 6)
    change = versions.roll_back()
    assert (change.version, change.rolled_back) == (2, True)
    assert versions.in_service() == 2
    assert versions.numbers() == [1, 2, 4, 5, 6], "rolling back removes nothing"


def test_rolling_back_to_a_named_version(versions):
    assert versions.roll_back(1).version == 1
    assert versions.roll_back(5).version == 5


@pytest.mark.parametrize(("version", "message"), [(3, "no version 3; there is 1, 2, 4, 5"), (5, "in service already")])
def test_rolling_back_to_what_cannot_be_is_an_error_that_names_the_choice(versions, version, message):
    with pytest.raises(CheckpointError, match=message):
        versions.roll_back(version)
    assert versions.in_service() == 5


def test_rolling_back_further_than_the_first_version_is_an_error(versions):
    versions.roll_back(1)
    with pytest.raises(CheckpointError, match="no version before 1"):
        versions.roll_back()


def test_nothing_is_in_service_before_the_first_promotion(tmp_path):
    versions = Versions(tmp_path)
    assert versions.in_service() is None
    assert versions.numbers() == []
    with pytest.raises(CheckpointError, match="none to go back to"):
        versions.roll_back()


def test_a_damaged_version_is_not_rolled_back_to(versions):
    for file in versions.path(4).rglob("metadata"):
        file.write_text("{")
    with pytest.raises(CheckpointError):
        versions.roll_back()
    assert versions.in_service() == 5


def test_a_damaged_pointer_names_the_file_and_the_remedy(versions):
    (versions.directory / "service.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"service.json is damaged .* --rollback=VERSION"):
        versions.in_service()


def test_a_kill_before_the_pointer_is_written_leaves_the_version_before_in_service(versions, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Versions, "_put_in_service", killed)
        with pytest.raises(KeyboardInterrupt):
            promote(versions, 6)
    assert versions.in_service() == 5
    versions.promote(6, params(60), DESCRIPTION, reason="again")
    assert (versions.in_service(), value(versions, 6)) == (6, 60)


def test_what_a_killed_promotion_left_is_no_version_and_is_removed_by_the_next(versions):
    leftover = versions.directory / ".0006"
    (leftover / "half").mkdir(parents=True)
    assert versions.numbers() == [1, 2, 4, 5]
    promote(versions, 6)
    assert not leftover.exists()


def test_cleaning_keeps_the_newest_the_one_in_service_and_the_one_to_roll_back_to(versions):
    assert versions.clean(0) == []
    versions.roll_back(2)
    assert versions.clean(1) == [4]
    assert versions.numbers() == [1, 2, 5]
    assert versions.roll_back().version == 1


def test_a_promotion_does_not_take_back_a_roll_back_that_came_while_it_was_decided(versions):
    decided = versions.changes()[-1].number
    versions.roll_back(2)
    assert versions.promote(6, params(6), DESCRIPTION, reason="better", after=decided) is None
    assert versions.in_service() == 2
    assert 6 not in versions.numbers()
    assert versions.promote(7, params(7), DESCRIPTION, reason="better", after=decided + 1).version == 7
    assert versions.in_service() == 7


def test_a_roll_back_that_comes_while_a_version_is_published_waits_and_takes_it_back(versions, monkeypatch):
    from mmrec_jax.streaming import versions as module

    rolled, sync_all = [], module.sync_all

    def meanwhile(folder):
        def roll_back():
            rolled.append(Versions(versions.directory.parent).roll_back())

        other = threading.Thread(target=roll_back)
        other.start()
        other.join(0.2)
        assert other.is_alive()
        rolled.append(other)
        sync_all(folder)

    monkeypatch.setattr(module, "sync_all", meanwhile)
    assert versions.promote(6, params(6), DESCRIPTION, reason="better", after=versions.changes()[-1].number)
    rolled[0].join()
    assert (rolled[1].version, rolled[1].reason) == (5, "rolled back from version 6")
    assert versions.in_service() == 5
