"""Ladders in training: growth compiles nothing again, frozen experts stay as they are, utilisation is measured."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.config import base, modality, resolve
from mmrec_jax.experiment import build_task
from mmrec_jax.store.table import StateTable
from mmrec_jax.streaming import growth
from mmrec_jax.training import TrainingConfig
from mmrec_jax.training.compilations import process_counter
from mmrec_jax.training.items import SequentialFrozen
from mmrec_jax.training.optimizers import build_optimizer
from mmrec_jax.training.scorer import tower_gates
from mmrec_jax.training.step import TrainStep, fetch_window
from mmrec_jax.training.trees import host_copy
from mmrec_jax.types import SequenceBatch
from tests.models import reference_ladder as reference
from tests.models.test_ladder import as_lists

ROWS, WIDTH, CAPACITY, NAMES = 300, 8, 4, ("image", "text")


@pytest.fixture(scope="module")
def frozen():
    rng = np.random.default_rng(0)
    values = {name: tuple(jnp.asarray(rng.normal(size=(ROWS, WIDTH)), jnp.float32) for _ in range(3)) for name in NAMES}
    present = {name: jnp.asarray((rng.random(ROWS) < 0.8) & (np.arange(ROWS) > 0)) for name in NAMES}
    return SequentialFrozen(StateTable(values, {}, present), jnp.zeros(ROWS))


@pytest.fixture(scope="module")
def task(frozen):
    made = base("x")
    made.model.update({"system": "xsmoe", "width": 4, "length": 3, "bottleneck": 3, "capacity": CAPACITY})
    made.fusion.kind, made.user.blocks = "add", 1
    made.modalities = {name: modality(template="{title}") for name in NAMES}
    return build_task(resolve(made), frozen.states, ROWS)


def batch():
    items = np.arange(16, dtype=np.int32)
    positions = (np.arange(32) % 15 + 1).reshape(8, 4).astype(np.int32)
    counts = np.bincount(positions.reshape(-1), minlength=16).astype(np.int32)
    return SequenceBatch(items, counts, positions, np.arange(24, dtype=np.int32), np.arange(8, dtype=np.int32))


@pytest.fixture(scope="module")
def grown(task, frozen):
    """Parameters before and after three steps in each of three windows, and how many programs the later two made."""
    settings = TrainingConfig(optimizer="adamw", weight_decay=0.1, clip_norm=1.0, learning_rate=0.01)
    params = host_copy(jax.jit(task.init)(jax.random.key(0), frozen))
    step = TrainStep(task, build_optimizer(settings, params, 3), seed=0, ema_decay=0.9, gradient_norm=True)
    rng, compiled, pairs, measured, ready = np.random.default_rng(0), process_counter(), [], [], jax.device_put(batch())
    for window in range(3):
        before = params
        state = step.init(params, frozen, ready)
        if not window:
            step.warm_up(state, frozen, [ready])
        count = compiled.count
        for _ in range(3):
            state = step(state, frozen, ready)
        assert compiled.count == count, window
        pairs += [(before, host_copy(state.params)), (before, host_copy(state.average))]
        params = host_copy(state.params)
        measured.append(fetch_window(state)[1])
        if window == 1:
            shares = dict.fromkeys(growth.rungs(params), np.array([0.04, 0.96, 0, 0]))
            params, pruned = growth.prune(params, shares, 0.1)
            assert {one.slot for one in pruned} == {0}
        params, *_ = growth.expand(params, window + 1, rng)
    return step, pairs, measured, params


def test_growth_and_pruning_compile_nothing(grown):
    assert grown[0].recompilations == 0


def test_only_what_is_trainable_changes(grown):
    for before, after in grown[1]:
        rungs = growth.rungs(after)
        for name, old in growth.rungs(before).items():
            for node, values in (("experts", ("down", "up")), ("router", ("rows",))):
                mine, theirs = getattr(old, node), getattr(rungs[name], node)
                fixed = mine["trainable"] == 0
                for key, leaf in mine.items():
                    same = leaf == theirs[key]
                    assert same[fixed].all(), (name, node, key)
                    assert key in values or same.all(), (name, node, key)
                    assert key not in values or not same[~fixed].all(axis=-1).any(), (name, node, key)


def test_training_measures_utilisation_of_the_slots_in_use(grown):
    for window, sums in enumerate(grown[2]):
        used = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]][window]
        for name in ("image_1", "image_2", "text_1", "text_2"):
            shares = sums[f"utilisation/{name}"] / 3
            assert shares.sum() == pytest.approx(1, abs=1e-5)  # float32
            assert ((shares > 0) == np.array(used, bool)).all()


def test_gates_are_told_by_slot(task, frozen, grown):
    params, rows = grown[3], np.array([3, 5, 8])
    gates = tower_gates(task, params, frozen, rows)
    used = growth.rungs(params)["text_1"].used
    assert set(gates["text"]) == {"backbone", *(f"expert_{slot}" for slot in used)}
    np.testing.assert_allclose(sum(gates["text"].values()), np.ones((3, 2)), rtol=1e-5)  # float32
    inputs = np.asarray(frozen.states.values["text"][0], np.float64)
    weights = [reference.gates(inputs[row], as_lists(params["items"]["ladders"]["rung_text_1"])[1]) for row in rows]
    found = [gates["text"][name][:, 0] for name in ("backbone", *(f"expert_{slot}" for slot in used))]
    np.testing.assert_allclose(np.stack(found, axis=1), weights, rtol=1e-4)  # float32
