"""Slots that are frozen stay as they are to the bit, whatever trains; metrics that are arrays reach the history."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import toy

from mmrec_jax import slots
from mmrec_jax.training import load_params
from mmrec_jax.training.trees import host_copy, named_leaves

ACTIVE, TRAINABLE = np.array([1, 1, 0, 1, 0], np.float32), np.array([0, 0, 0, 1, 0], np.float32)


class SlotsTask(toy.ToyTask):
    """The toy with experts in five slots, three in use and one of them trained; gradients reach all of them."""

    def init(self, rng, frozen):
        values = jax.random.normal(jax.random.fold_in(rng, 1), (5, frozen.shape[1], 4))
        node = {"up": values, "active": jnp.asarray(ACTIVE), "trainable": jnp.asarray(TRAINABLE), "born": jnp.ones(5)}
        return super().init(rng, frozen) | {"experts": node}

    def _predict(self, params, x):
        node = params["experts"]
        values = node["up"] * (1 + node["active"] + node["trainable"] + node["born"])[:, None, None]
        return super()._predict(params, x) + 0.1 * jnp.sum(jnp.tanh(jnp.einsum("bd,edo->beo", x, values)), axis=1)

    def loss(self, params, frozen, inputs, rng):
        loss, metrics = super().loss(params, frozen, inputs, rng)
        share = jax.nn.softmax(jnp.sum(jnp.square(params["experts"]["up"]), axis=(1, 2)))
        return loss, metrics | {"utilisation/toy_1": jax.lax.stop_gradient(share)}


def begin():
    key = jax.random.split(jax.random.key(0))[0]
    return host_copy(SlotsTask().init(key, toy.table()))


SETTINGS = {
    "adam": {},
    "decay, clipping, average": {"optimizer": "adamw", "weight_decay": 0.3, "clip_norm": 0.1, "ema_decay": 0.5},
}


@pytest.fixture(scope="module", params=SETTINGS.values(), ids=SETTINGS)
def trained(request, tmp_path_factory):
    """Workdir, result and settings of a run over two epochs."""
    workdir = tmp_path_factory.mktemp("slots")
    settings = {"epochs": 2, **request.param}
    return workdir, toy.train(workdir, task=SlotsTask(), **settings), settings


def test_frozen_slots_and_masks_stay_bit_identical(trained):
    workdir, result, _ = trained
    before = begin()
    last, _ = load_params(workdir, "last")
    for params in (result.params, last):
        for name, leaf in named_leaves(before["experts"]).items():
            fixed = TRAINABLE == 0 if name == "up" else np.ones(5, bool)
            assert params["experts"][name][fixed].tobytes() == np.asarray(leaf)[fixed].tobytes(), name
        assert (params["experts"]["up"][3] != before["experts"]["up"][3]).any()
        assert (params["items"]["down"]["kernel"] != before["items"]["down"]["kernel"]).any()


def test_arrays_are_in_the_history_and_nowhere_else(trained):
    workdir, result, _ = trained
    for entry in result.history:
        assert set(entry["measured"]) == {"utilisation/toy_1"}
        shares = entry["measured"]["utilisation/toy_1"]
        assert len(shares) == 5
        assert sum(shares) == pytest.approx(1, abs=1e-5)  # means of float32 shares
        assert "utilisation/toy_1" not in entry["train"]
    names = set(pl.read_csv(workdir / "metrics.csv")["name"])
    assert {"loss", "batch_size", "score"} <= names
    assert not any("utilisation" in name for name in names)


def test_an_interrupted_run_resumes_to_the_same_bits(trained, tmp_path):
    _, whole, settings = trained

    class Stops(toy.ToyStream):
        def __next__(self):
            if self._taken == 4:
                raise KeyboardInterrupt
            return super().__next__()

    settings = {**settings, "checkpoint_every_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path, task=SlotsTask(), stream=Stops(), **settings)
    parts = toy.train(tmp_path, task=SlotsTask(), **settings)
    assert [leaf.tobytes() for leaf in jax.tree.leaves(parts.params)] == [
        leaf.tobytes() for leaf in jax.tree.leaves(whole.params)
    ]
    assert [entry["measured"] for entry in parts.history] == [entry["measured"] for entry in whole.history]


def test_gradients_of_what_is_not_trained_count_for_no_norm():
    params = begin()
    ones = jax.tree.map(jnp.ones_like, params)
    masked = slots.masked_gradients(ones, params)
    assert masked["experts"]["up"].sum() == params["experts"]["up"][3].size
    assert not any(masked["experts"][name].any() for name in slots.MASKS)
    jax.tree.map(np.testing.assert_array_equal, masked["users"], ones["users"])
