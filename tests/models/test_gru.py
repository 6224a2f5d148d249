"""The recurrent user encoder: equal to a plain-numpy version, blind to padding, with the interface of SasRec."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.errors import ConfigError
from mmrec_jax.sequence import Gru, GruConfig
from tests.models.reference_systems import gru

CONFIG = GruConfig(width=6, length=5, layers=2, dropout=0.3)
MASK = jnp.asarray([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], bool)


@pytest.fixture(scope="module")
def setup():
    rng = np.random.default_rng(0)
    items = jnp.asarray(rng.standard_normal((3, 5, 6)), jnp.float32)
    shapes = jax.eval_shape(lambda: Gru(CONFIG).init(jax.random.key(0), items, MASK, train=False))["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.6 * rng.standard_normal(leaf.shape), jnp.float32), shapes)
    return params, items


@partial(jax.jit, static_argnames="train")
def run(params, items, steps=None, train=False, key=0):
    rngs = {"dropout": jax.random.key(key)}
    return Gru(CONFIG).apply({"params": params}, items, MASK, train=train, steps=steps, rngs=rngs)


def test_equals_the_written_out_unit_over_what_is_no_padding(setup):
    params, items = setup
    result, numbers = run(params, items), jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for row, real in enumerate(np.asarray(MASK)):
        expected = gru(numbers, np.asarray(items[row], np.float64)[real], CONFIG.layers)
        np.testing.assert_allclose(np.asarray(result[row])[real], expected, rtol=1e-5, atol=1e-6)  # float32


def test_named_steps_give_what_the_whole_histories_give_and_the_same_gradients(setup):
    params, items = setup
    steps = jnp.append(jnp.flatnonzero(MASK), jnp.array([MASK.size] * 2))  # and two entries that stand for nothing
    chosen = items.reshape(-1, 6).at[steps].get(mode="fill", fill_value=0)
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((int(MASK.sum()), 6)), jnp.float32)

    def of_steps(p):
        out = run(p, chosen, steps)[:-2]
        return jnp.sum(weights * out), out

    def of_all(p):
        out = run(p, items)[np.asarray(MASK)]
        return jnp.sum(weights * out), out

    ours, theirs = (jax.jit(jax.grad(function, has_aux=True))(params) for function in (of_steps, of_all))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)  # sum order


def test_dropout_is_on_in_training_only(setup):
    params, items = setup
    assert not np.allclose(run(params, items, train=True), run(params, items, train=True, key=1))
    np.testing.assert_array_equal(run(params, items), run(params, items, key=1))


def test_a_rate_of_one_is_refused():
    with pytest.raises(ConfigError, match="dropout"):
        GruConfig(dropout=1.0)
