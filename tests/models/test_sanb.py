"""The hand-written derivatives of the side blocks and gates equal those that JAX derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.adapters.gates import gated_sum
from mmrec_jax.adapters.sanb import ACTIVATIONS, first_sanb, last_sanb, sanb


def plain(z, down, down_bias, up, up_bias, activation):
    return z + ACTIVATIONS[activation](z @ down.T + down_bias) @ up + up_bias


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_derivatives_of_a_block(activation):
    keys = jax.random.split(jax.random.key(0), 6)
    shapes = [(7, 12), (3, 12), (3,), (3, 12), (12,)]
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)]
    weight = jax.random.normal(keys[5], (7, 12))
    ours = jax.grad(lambda a: jnp.sum(weight * sanb(*a, activation)))(arrays)
    theirs = jax.grad(lambda a: jnp.sum(weight * plain(*a, activation)))(arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)  # sum order


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_the_first_block_is_a_block_of_weighted_frozen_states(activation):
    keys = jax.random.split(jax.random.key(2), 6)
    shapes = [(7, 12), (3, 12), (3,), (3, 12), (12,)]
    states, *block = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False))
    weight, cotangent = jnp.float32(0.3), jax.random.normal(keys[5], (7, 12))
    ours = jax.value_and_grad(lambda w, b: jnp.sum(cotangent * first_sanb(w, states, *b, activation)), (0, 1))
    theirs = jax.value_and_grad(lambda w, b: jnp.sum(cotangent * plain(w * states, *b, activation)), (0, 1))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours(weight, block), theirs(weight, block)
    )  # sum order


def test_the_last_block_is_a_linear_map_of_a_block():
    keys = jax.random.split(jax.random.key(3), 7)
    shapes = [(7, 12), (3, 12), (3,), (3, 12), (12,), (4, 12), (4,)]
    *arrays, kernel, bias = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    expected = plain(*arrays, "gelu") @ kernel.T + bias
    np.testing.assert_allclose(last_sanb(*arrays, kernel, bias, "gelu"), expected, rtol=1e-4, atol=1e-4)  # sum order


@pytest.mark.parametrize("per_item", [False, True])
def test_a_gated_sum_weighs_each_source(per_item):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((5, 3) if per_item else 3)
    sources = rng.standard_normal((3, 5, 8))
    expected = np.einsum("is,siw->iw" if per_item else "s,siw->iw", weights, sources)
    made = gated_sum(jnp.asarray(weights, jnp.float32), tuple(jnp.asarray(sources, jnp.float32)))
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)  # float32
