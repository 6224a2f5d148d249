"""Warm starts are strict: every old parameter finds its place or the start is refused."""

from __future__ import annotations

import numpy as np
import pytest

from mmrec_jax.errors import CheckpointError
from mmrec_jax.training import warm_start
from mmrec_jax.training.trees import named_leaves


def text_only():
    return {
        "towers": {"title": {"down": np.full((4, 2), 2.0, np.float32)}},
        "fusion": {"gate": np.ones((3, 1), np.float32)},
    }


def with_poster():
    return {
        "towers": {
            "title": {"down": np.zeros((4, 2), np.float32)},
            "poster": {"down": np.full((4, 2), 5.0, np.float32)},
        },
        "fusion": {"gate": np.zeros((3, 2), np.float32)},
    }


def add_column(old, fresh):
    return np.concatenate([old, fresh[:, old.shape[1] :]], axis=1)


def test_adding_a_modality_restores_everything_old_and_lists_everything_new():
    fresh = with_poster()
    params, report = warm_start(text_only(), fresh, grow={"fusion/gate": add_column})
    leaves = named_leaves(params)
    assert (leaves["towers/title/down"] == 2).all()
    assert (leaves["towers/poster/down"] == 5).all()
    assert leaves["fusion/gate"].tolist() == [[1, 0]] * 3
    assert report.restored == ("towers/title/down",)
    assert report.grown == ("fusion/gate",)
    assert report.new == ("towers/poster/down",)
    assert "1 new (towers/poster/down)" in str(report)
    assert (fresh["towers"]["title"]["down"] == 0).all(), "the template must stay as it was"


def test_every_misfit_is_named_at_once():
    old = text_only() | {"gone": np.zeros(2, np.float32)}
    with pytest.raises(CheckpointError) as error:
        warm_start(old, with_poster(), grow={"fusion/gaet": add_column})
    message = str(error.value)
    assert "gone: the new model has no such parameter" in message
    assert "fusion/gate: shape [3, 1], the new model wants [3, 2]" in message
    assert "fusion/gaet: a rule to grow it, but no such parameter" in message


def test_the_same_model_is_restored_whole():
    params, report = warm_start(text_only(), text_only())
    assert report.new == report.grown == ()
    assert set(report.restored) == set(named_leaves(params))
