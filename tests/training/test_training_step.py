"""The compiled step: donated, counted, reproducible, and honest about values that are not finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from mmrec_jax.errors import TrainingError
from mmrec_jax.training.step import TrainStep, check_finite, fetch_window
from mmrec_jax.training.trees import host_copy


def begin(task=None, stream=None, **options):
    task, stream, frozen = task or toy.ToyTask(), stream or toy.ToyStream(), jax.device_put(toy.table())
    step = TrainStep(task, optax.adam(1e-2), seed=0, **options)
    params = task.init(jax.random.key(0), frozen)
    batches = list(stream.warmup_batches())
    return step, step.init(params, frozen, batches[0]), frozen, stream, batches


def test_the_state_is_donated_and_the_initial_parameters_are_not():
    task, frozen = toy.ToyTask(), jax.device_put(toy.table())
    step = TrainStep(task, optax.adam(1e-2), seed=0)
    params = task.init(jax.random.key(0), frozen)
    batch = jax.device_put(next(toy.ToyStream()))
    before = step.init(params, frozen, batch)
    step(before, frozen, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.optimizer)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, frozen, batch)))


def test_every_shape_is_compiled_at_warm_up_and_none_later():
    step, state, frozen, stream, batches = begin()
    assert step.warm_up(state, frozen, batches) == 5  # inputs and gradients for two shapes, and the update
    assert step.warm_up(state, frozen, batches) == 0
    with jax.transfer_guard("disallow"):
        for number in range(12):
            state = step(state, frozen, jax.device_put(next(stream)))
            if number % 5 == 0:
                state, _, _ = fetch_window(state)
    assert step.recompilations == 0


def test_a_shape_that_warm_up_did_not_see_is_compiled_and_counted():
    step, state, frozen, stream, batches = begin()
    step.warm_up(state, frozen, batches[:1])
    with jax.transfer_guard("disallow"):
        for _ in range(6):
            state = step(state, frozen, jax.device_put(next(stream)))
    assert step.recompilations == 1


def test_warm_up_leaves_the_state_as_it_was():
    step, state, frozen, _, batches = begin()
    before = host_copy(state)
    step.warm_up(state, frozen, batches)
    jax.tree.map(np.testing.assert_array_equal, host_copy(state), before)


def test_nothing_but_the_batch_is_moved_by_a_step():
    step, state, frozen, stream, batches = begin()
    step.warm_up(state, frozen, batches)
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        step(state, frozen, next(stream))


def test_the_random_key_depends_on_the_seed_and_the_step_alone():
    def losses(start):
        step, state, frozen, stream, _ = begin()
        state = state.replace(step=state.step + start)
        batch = jax.device_put(next(stream))
        return float(host_copy(step(state, frozen, batch).window.sums["loss"]))

    assert losses(5) == losses(5)
    assert losses(5) != losses(6)


def test_metrics_are_summed_on_the_device_until_they_are_fetched():
    step, state, frozen, stream, _ = begin()
    for _ in range(3):
        state = step(state, frozen, jax.device_put(next(stream)))
    state, sums, steps = fetch_window(state)
    assert steps == 3
    assert sums["batch_size"] == 16 + 16 + 24
    assert set(sums) == {"loss", "batch_size"}
    _, sums, steps = fetch_window(state)
    assert (steps, sums["loss"]) == (0, 0.0)


def test_the_gradient_norm_is_that_of_optax():
    step, state, frozen, stream, _ = begin(gradient_norm=True)
    batch = jax.device_put(next(stream))
    rng = jax.random.fold_in(jax.random.split(jax.random.key(0))[1], 0)
    task = toy.ToyTask()
    inputs = task.inputs(frozen, batch, rng)
    gradients = jax.grad(task.loss, has_aux=True)(state.params, frozen, inputs, rng)[0]
    expected = float(optax.tree.norm(gradients))
    _, sums, _ = fetch_window(step(state, frozen, batch))
    assert sums["gradient_norm"] == pytest.approx(expected, rel=1e-5)  # another order of summation


def test_the_moving_average_follows_the_parameters():
    step, state, frozen, stream, _ = begin(ema_decay=0.75)
    average = host_copy(state.params)
    for _ in range(4):
        state = step(state, frozen, jax.device_put(next(stream)))
        average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, average, host_copy(state.params))
    for a, b in zip(jax.tree.leaves(state.average), jax.tree.leaves(average), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # fused multiply-add on the device
    assert state.evaluated is state.average


class OneBadGradient(toy.ToyTask):
    """In the third step the loss is finite and the gradient of `users/up/bias` is not."""

    def loss(self, params, frozen, inputs, rng):
        loss, metrics = super().loss(params, frozen, inputs, rng)
        bias = params["users"]["up"]["bias"]
        bad = inputs[1].rows.shape[0] == 24
        return loss + (jnp.sum(jnp.sqrt(bias * 0.0)) if bad else 0.0), metrics


def test_a_gradient_that_is_not_finite_is_traced_to_its_first_step_and_parameter():
    step, state, frozen, stream, _ = begin(task=OneBadGradient())
    for _ in range(5):
        state = step(state, frozen, jax.device_put(next(stream)))
    with pytest.raises(TrainingError) as error:
        check_finite(state, (("users", 1e-3),), batches_per_epoch=2)
    message = str(error.value)
    assert "Step 4 (epoch 2): the loss is not finite, because the step before left parameters" in message
    assert "users (learning-rate group users): 1 parameters, first users/up/bias" in message
    assert "items" not in message


def test_parameters_that_are_spoilt_without_the_loss_showing_it_are_found_too():
    step, state, frozen, stream, _ = begin(task=OneBadGradient())
    for _ in range(3):
        state = step(state, frozen, jax.device_put(next(stream)))
    with pytest.raises(
        TrainingError, match=r"Step 3 \(epoch 1\): parameters are not finite though the loss still is: users"
    ):
        check_finite(state, (), batches_per_epoch=4)


def test_a_loss_that_is_not_finite_by_itself_is_told_from_one_that_parameters_spoilt():
    step, state, frozen, stream, _ = begin(stream=toy.ToyStream(poisoned_step=1))
    for _ in range(4):
        state = step(state, frozen, jax.device_put(next(stream)))
    with pytest.raises(TrainingError, match=r"Step 2 \(epoch 1\): the loss is not finite though all parameters were"):
        check_finite(state, (), batches_per_epoch=4)


class Counting(toy.ToyTask):
    """With a metric that is an array."""

    def loss(self, params, frozen, inputs, rng):
        loss, metrics = super().loss(params, frozen, inputs, rng)
        return loss, metrics | {"rows/by_parity": jnp.bincount(inputs[1].rows % 2, length=2)}


def test_metrics_may_be_arrays():
    step, state, frozen, stream, _ = begin(task=Counting())
    batches = [next(stream) for _ in range(3)]
    for batch in batches:
        state = step(state, frozen, jax.device_put(batch))
    state, sums, _ = fetch_window(state)
    rows = np.concatenate([batch.rows for batch in batches])
    assert sums["rows/by_parity"].tolist() == [np.sum(rows % 2 == 0), np.sum(rows % 2)]
    assert fetch_window(state)[1]["rows/by_parity"].tolist() == [0, 0]
