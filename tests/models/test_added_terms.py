"""What an item encoder adds to a training step: losses, metrics and random draws, whichever module they come from."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.objectives import ObjectiveConfig
from mmrec_jax.sequence import SasRecConfig
from mmrec_jax.store.table import StateTable
from mmrec_jax.systems.config import ScoringConfig
from mmrec_jax.training.items import CatalogueItems, SequentialFrozen
from mmrec_jax.training.sequential import SequentialRecommendation
from mmrec_jax.types import LOSSES, METRICS, TRAINING, ItemVectors, SequenceBatch


class Part(nn.Module):
    """A linear map that keeps itself small, and is noisy in training."""

    weight: float
    noise: float

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (x.shape[-1], 4))
        self.sow(LOSSES, "size", self.weight * jnp.sum(kernel**2))
        self.sow(METRICS, f"size_{self.name}", jnp.sum(kernel**2))
        if self.has_rng(TRAINING):
            x = x + self.noise * jax.random.normal(self.make_rng(TRAINING), x.shape)
        return x @ kernel


class Encoder(nn.Module):
    weight: float = 0.0
    noise: float = 0.0

    @nn.compact
    def __call__(self, hidden):
        (states,) = hidden.values["text"]
        first = Part(self.weight, self.noise, name="first")(states)
        return ItemVectors(first + Part(self.weight, self.noise, name="second")(states))


@pytest.fixture(scope="module")
def frozen():
    states = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3)), jnp.float32)
    return SequentialFrozen(
        StateTable({"text": (states,)}, {}, {"text": jnp.arange(6) > 0}, complete=True), jnp.full(6, -2.0)
    )


BATCH = SequenceBatch(
    items=jnp.array([0, 1, 2, 3, 4]),
    counts=jnp.array([0, 1, 2, 2, 1]),
    positions=jnp.array([[0, 1, 2], [2, 3, 4]]),
    steps=jnp.array([1, 2, 3, 4]),
    users=jnp.array([0, 1]),
)


def task_of(dtype="float32", **encoder):
    user = SasRecConfig(4, 2, 1, 1, 0.0)
    return SequentialRecommendation(
        CatalogueItems(Encoder(**encoder)), user, ObjectiveConfig(), ScoringConfig(), compute_dtype=dtype
    )


def step(task, frozen, params, key):
    inputs = task.inputs(frozen, BATCH, key)
    return jax.jit(jax.value_and_grad(task.loss, has_aux=True))(params, frozen, inputs, key)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_losses_are_added_and_metrics_stand_beside_the_tasks(frozen, dtype):
    plain, task = task_of(dtype), task_of(dtype, weight=0.5)
    params = jax.jit(task.init)(jax.random.key(0), frozen)
    key = jax.random.key(1)
    (before, _), slope = step(plain, frozen, params, key)
    (loss, metrics), gradients = step(task, frozen, params, key)
    sizes = {name: float(jnp.sum(params["items"][name]["kernel"] ** 2)) for name in ("first", "second")}
    close = 1e-5 if dtype == "float32" else 2e-2  # of bfloat16's 8 bits
    assert float(loss - before) == pytest.approx(0.5 * sum(sizes.values()), rel=close)
    assert metrics == {f"size_{name}": pytest.approx(size, rel=close) for name, size in sizes.items()}
    for name in sizes:
        added = gradients["items"][name]["kernel"] - slope["items"][name]["kernel"]
        np.testing.assert_allclose(added, params["items"][name]["kernel"], rtol=close, atol=close)


def test_draws_follow_the_steps_key_and_evaluation_has_none(frozen):
    task, plain = task_of(noise=0.5), task_of()
    params = jax.jit(task.init)(jax.random.key(0), frozen)
    losses = [float(step(task, frozen, params, jax.random.key(seed))[0][0]) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    inputs = task.item_encoder.inputs(frozen, BATCH.items)
    np.testing.assert_array_equal(task.item_vectors(params, inputs).vector, plain.item_vectors(params, inputs).vector)
