"""A run with more modalities begins with the parameters of a finished one with fewer."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mmrec_jax.training import load_params
from mmrec_jax.training.trees import named_leaves
from tests.tiny_run import arguments

QUICK = ("--config.baselines=()", "--config.show_users=0", "--config.training.epochs=1")
ADDED = ("--config.training.learning_rate=1e-30", "--config.model.bottlenecks=(('picture', 3),)")


@pytest.fixture(scope="module")
def words(shop, trained, tmp_path_factory):
    """The workdir of a finished run that reads the texts only."""
    from mmrec_jax.main import command

    workdir = tmp_path_factory.mktemp("words") / "run"
    assert command(arguments(shop, workdir, *QUICK, f"--config.store={trained / 'store'}", only="words")) == 0
    return workdir


@pytest.fixture
def warm(shop, trained, words, tmp_path, cli):
    """Calls a run over texts and pictures that begins with the text-only one."""

    def run(*flags, source=words):
        flags = (*QUICK, f"--config.store={trained / 'store'}", f"--config.warm_start={source}", *flags)
        return tmp_path / "warm", *cli(arguments(shop, tmp_path / "warm", *flags))

    return run


def test_every_parameter_is_restored_or_listed_as_new(warm, words):
    # With this learning rate, the parameters after an epoch are those that the run began with, but for 1e-29.
    # A bottleneck of the new modality's own is no difference to the old run.
    workdir, code, out, _ = warm(*ADDED)
    assert code == 0
    assert "Warm start from" in out
    assert "(for picture)" in " ".join(out.split())
    report = json.loads((workdir / "warm_start.json").read_text())
    before, after = (named_leaves(load_params(place)[0]) for place in (words, workdir))
    assert set(report["restored"]) == before.keys()
    assert report["grown"] == []
    assert set(report["restored"]) | set(report["new"]) == after.keys()
    assert not set(report["restored"]) & set(report["new"])
    assert all("picture" in name or "gate" in name for name in report["new"])
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=0, atol=1e-28, err_msg=name)


def test_shared_gates_grow_where_the_new_modality_is_deeper(shop, trained, tmp_path, cli):
    flags = (*QUICK, f"--config.store={trained / 'store'}", "--config.model.shared_gates")
    flags = (*flags, "--config.modalities.words.layers=(3,)")  # one, and of pictures two
    first, second = tmp_path / "words", tmp_path / "both"
    assert cli(arguments(shop, first, *flags, only="words"))[0] == 0
    code, out, err = cli(arguments(shop, second, *flags, ADDED[0], f"--config.warm_start={first}"))
    assert code == 0, err
    assert "2 grown" in out
    report = json.loads((second / "warm_start.json").read_text())
    assert report["grown"] == ["items/adapters/gate_shared_backbone", "items/adapters/gate_shared_words"]
    before, after = (named_leaves(load_params(place)[0]) for place in (first, second))
    for name in report["grown"]:
        np.testing.assert_allclose(after[name][1:], before[name], rtol=0, atol=1e-28)


def test_a_run_that_has_begun_needs_the_old_one_no_more(warm, shop, tmp_path, cli):
    workdir, code, _, _ = warm(*ADDED)
    assert code == 0
    content = json.loads((workdir / "config.json").read_text())
    content["warm_start"] = str(tmp_path / "gone")
    content["training"]["epochs"] = 2
    (workdir / "config.json").write_text(json.dumps(content))
    assert cli(["mmrec_jax", f"--workdir={workdir}"])[0] == 0
    assert load_params(workdir, "last")[1]["progress"]["step"] == 6


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.model.width=16", "model.width: checkpoint 8, now 16"),
        ("--config.model.bottleneck=2", "model.bottleneck: checkpoint 4, now 2"),
        ("--config.user.blocks=2", "user.blocks: checkpoint 1, now 2"),
        ("--config.fusion.kind=concat", "fusion.kind: checkpoint 'momef', now 'concat'"),
        ("--config.modalities.words.layers=(0,3)", "modalities.words.layers: checkpoint [0, 2, 3], now [0, 3]"),
    ],
)
def test_a_run_of_other_sizes_is_refused_by_naming_them(warm, flag, message):
    _, code, _, err = warm(flag)
    assert code == 2
    assert message in err
    assert "A warm start may add modalities and change nothing else" in err


def test_another_system_another_backbone_or_no_checkpoint_is_refused(warm, words, trained, tmp_path):
    _, code, _, err = warm(source=trained / "baselines" / "sasrec")
    assert (code, "system: checkpoint 'sasrec', now 'crossan'" in err) == (2, True)
    _, code, _, err = warm(source=tmp_path)
    assert (code, "there is no checkpoint" in err) == (2, True)


def test_a_backbone_of_other_weights_is_refused(warm, shop, tmp_path):
    from tests.tiny_backbones import golden, golden_weights, write_backbone

    tensors, _ = golden("bert")
    other = {name: value * 1.5 for name, value in golden_weights(tensors).items()}
    backbone = write_backbone(tmp_path / "other", "bert", weights=other)
    _, code, _, err = warm(
        f"--config.modalities.words.backbone={backbone}", f"--config.store={tmp_path / 'another_store'}"
    )
    assert (code, "modalities.words.weights_sha256: checkpoint" in err) == (2, True)
