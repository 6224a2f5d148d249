"""The service with a ladder that really grows: versions of fewer and of more slots, and a roll-back between them."""

from __future__ import annotations

import shutil

import pytest

from mmrec_jax.streaming import growth
from mmrec_jax.streaming.state import StreamCheckpoints
from mmrec_jax.streaming.versions import Versions
from tests.streaming.conftest import events, learner
from tests.streaming.test_service import numbers, serviced, write

pytestmark = pytest.mark.long

SETTINGS = {
    "system": "xsmoe",
    "only": "words",
    "fusion.kind": "add",
    "model.capacity": 1,
    "training.epochs": 1,
    "stream.at_capacity": "grow",
    "stream.threshold": 0.0,
    "stream.forgetting": 2,
    "service.promote": "always",
}


def lived(workdir, folder):
    """The service with a model that is trained, to the end of what has arrived."""
    own = serviced(workdir, folder, **SETTINGS)
    own.learner = lambda fingerprint, capacity: learner(own.config, workdir, capacity)
    return own, own.run()


@pytest.fixture(scope="module")
def rolled_back(tmp_path_factory):
    """A folder in which three windows were lived through, the version of the first was rolled back to, and two more
    windows have come."""
    folder, windows = tmp_path_factory.mktemp("rolled_back"), events(5)
    write(folder / "in", windows[:3])
    lived(folder / "run", folder / "in")
    Versions(folder / "run").roll_back(1)
    write(folder / "in", windows[3:])
    return folder


@pytest.fixture(scope="module")
def undisturbed(rolled_back, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(rolled_back / "run", folder / "run", symlinks=True)
    own, reports = lived(folder / "run", rolled_back / "in")
    return numbers(folder / "run", own, reports)


def test_after_a_roll_back_to_a_version_of_fewer_slots_its_experts_grow(undisturbed):
    reports = undisturbed["reports"]
    born = [[expert["born"] for expert in report["experts"]["words_1"]] for report in reports]
    assert born == [[0], [0, 1], [0, 1, 2], [0, 3], [0, 3, 4]]
    back = reports[2]["rolled_back_to"]
    assert (back["version"], [expert["born"] for expert in back["experts"]["words_1"]]) == (1, [0])
    assert back["experts"] == reports[0]["experts"]
    assert [one["slot"] for one in reports[2]["born"]] == [1, 1]  # of a rung each
    assert [version for version, _ in undisturbed["changes"]] == [1, 2, 1, 4]


def test_versions_of_fewer_slots_are_compared_with_those_of_more(undisturbed):
    promotions = [report["promotion"] for report in undisturbed["reports"][:-1]]
    assert [(found["version"], found.get("before")) for found in promotions] == [(1, None), (2, 1), (1, None), (4, 1)]
    assert promotions[3]["difference"]["mean"] == pytest.approx(promotions[3]["candidate"] - promotions[3]["serving"])


def test_killed_between_growth_and_training_after_a_roll_back_it_ends_with_the_same_bits(
    rolled_back, undisturbed, tmp_path, monkeypatch
):
    shutil.copytree(rolled_back / "run", tmp_path / "run", symlinks=True)
    save, slots = StreamCheckpoints.save, []

    def killed(self, state, params):
        save(self, state, params)
        if (state.window, state.phase) == (4, "expand"):
            slots.extend({rung.capacity for rung in growth.rungs(params).values()})
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StreamCheckpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            lived(tmp_path / "run", rolled_back / "in")
    assert slots == [2]
    own, reports = lived(tmp_path / "run", rolled_back / "in")
    found = numbers(tmp_path / "run", own, reports)
    for key, value in undisturbed.items():
        assert found[key] == value, key
