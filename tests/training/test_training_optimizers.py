"""Optimisers: groups of parameters with a learning rate each, schedules, and Adam as optax has it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_jax.errors import ConfigError
from mmrec_jax.training import TrainingConfig
from mmrec_jax.training.optimizers import build_optimizer, parameter_groups, schedule_factor
from mmrec_jax.training.trees import named_leaves


def params(seed: int = 0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        {"items": {"tower": {"down": (4, 3), "gate": (3,)}, "project": (3, 2)}, "users": {"kernel": (2, 2)}},
        is_leaf=lambda node: isinstance(node, tuple),
    )


def run(optimizer, steps=5):
    """Parameters after a few steps on random gradients."""

    @jax.jit
    def step(values, state, gradients):
        updates, state = optimizer.update(gradients, state, values)
        return optax.apply_updates(values, updates), state

    values = params()
    state = optimizer.init(values)
    for number in range(steps):
        values, state = step(values, state, params(number + 1))
    return values


def assert_same(left, right):
    for (name, a), b in zip(named_leaves(left).items(), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_without_groups_it_is_optax_adam_bit_for_bit():
    config = TrainingConfig(learning_rate=3e-3)
    assert_same(run(build_optimizer(config, params(), 10)), run(optax.adam(3e-3)))


def test_adamw_and_clipping_are_those_of_optax():
    config = TrainingConfig(optimizer="adamw", weight_decay=0.1, clip_norm=0.5)
    expected = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(1e-3, weight_decay=0.1, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim >= 2, tree)),
    )
    assert_same(run(build_optimizer(config, params(), 10)), run(expected))


def test_each_group_is_trained_with_its_own_learning_rate_and_the_rest_with_the_default():
    groups = (("items/tower", 5e-3), ("users", 0.0))
    config = TrainingConfig(learning_rate=1e-3, groups=groups)
    trained = run(build_optimizer(config, params(), 10))
    for prefix, rate in (("items/tower", 5e-3), ("users", 0.0), ("items/project", 1e-3)):
        alone = run(optax.adam(rate))
        for name, leaf in named_leaves(trained).items():
            if name.startswith(prefix):
                np.testing.assert_array_equal(leaf, named_leaves(alone)[name], err_msg=name)


@settings(max_examples=30, deadline=None)
@given(st.sets(st.sampled_from(["items/tower/down", "items/tower/gate", "items/project", "users"])))
def test_every_parameter_is_in_exactly_one_group(prefixes):
    groups = parameter_groups(params(), [(prefix, 0.1) for prefix in sorted(prefixes)])
    assert list(groups) == list(named_leaves(params()))
    for name, group in groups.items():
        owners = [prefix for prefix in prefixes if name.startswith(prefix)]
        assert group == (owners[0] if owners else "default")


def test_groups_that_cannot_be_are_refused_all_at_once():
    groups = [("towers", 0.1), ("items", 0.1), ("items/tower", 0.2), ("(", 0.1)]
    with pytest.raises(ConfigError) as error:
        parameter_groups(params(), groups)
    message = str(error.value)
    assert "'towers' matches the beginning of no parameter path; near it are items/tower/" in message
    assert "items/tower/down is matched by ['items', 'items/tower']" in message
    assert "'(' is no regular expression" in message


def test_schedules_warm_up_and_come_down_as_they_say():
    assert schedule_factor(TrainingConfig(), 10) is None
    cosine = schedule_factor(TrainingConfig(schedule="cosine", epochs=3, final_fraction=0.1), 10)
    assert cosine(0) == 1.0
    assert cosine(30) == pytest.approx(0.1)
    exponential = schedule_factor(TrainingConfig(schedule="exponential", decay=0.5, final_fraction=0.2), 10)
    assert [float(exponential(step)) for step in (0, 9, 10, 20, 90)] == pytest.approx([1, 1, 0.5, 0.25, 0.2])
    warm = schedule_factor(TrainingConfig(warmup_steps=4), 10)
    assert [float(warm(step)) for step in (0, 1, 4, 50)] == pytest.approx([0, 0.25, 1, 1])


def test_a_scheduled_learning_rate_is_that_of_optax():
    config = TrainingConfig(schedule="cosine", epochs=2, warmup_steps=2)
    schedule = schedule_factor(config, 4)
    expected = run(optax.adam(lambda count: 1e-3 * schedule(count)))
    for a, b in zip(jax.tree.leaves(run(build_optimizer(config, params(), 4))), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)  # the same product in another order


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "lion"}, "training.optimizer='lion': must be adam or adamw"),
        ({"epochs": 0}, "training.epochs=0: must be at least 1"),
        ({"weight_decay": 0.1}, "needs training.optimizer='adamw'"),
        ({"schedule": "linear"}, "must be constant or cosine or exponential"),
        ({"ema_decay": 1.0}, r"training.ema_decay=1.0: must be in \[0, 1\)"),
        ({"groups": (("items", -1.0),)}, "is no .pattern, learning rate of at least 0. pair"),
        ({"groups": (("items",),)}, "is no .pattern, learning rate of at least 0. pair"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**changes)
