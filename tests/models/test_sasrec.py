"""The user encoder: causal, blind to padding, and equal to a plain-numpy version."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.dropout import dropped, keep_masks
from mmrec_jax.errors import ConfigError
from mmrec_jax.sequence import SasRec, SasRecConfig

CONFIG = SasRecConfig(width=8, length=6, heads=2, dropout=0.2)


def setup(config=CONFIG, seed=0):
    module = SasRec(config)
    shapes = jax.eval_shape(
        lambda: module.init(
            jax.random.key(0),
            jnp.zeros((1, config.length, config.width)),
            jnp.ones((1, config.length), bool),
            train=False,
        )
    )["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), jnp.float32), shapes)
    items = jnp.asarray(rng.standard_normal((3, config.length, config.width)), jnp.float32)
    mask = jnp.asarray([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]], bool)
    return module, params, items, mask


@partial(jax.jit, static_argnums=0)
def encoded(module, params, items, mask):
    return module.apply({"params": params}, items, mask, train=False)


def numpy_sasrec(params, x, mask, config):
    """Post-norm blocks of one user, float64 (papers.md 1.0, item 8)."""

    def norm(x, p):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + 1e-6) * p["scale"] + p["bias"]

    size = config.width // config.heads
    x = norm(x + params["position"], params["norm"])
    for block in range(config.blocks):
        name = f"block_{block}"
        query, key, value = np.split(x @ params[f"{name}_qkv"], 3, axis=1)
        heads = []
        for head in range(config.heads):
            part = slice(head * size, (head + 1) * size)
            scores = query[:, part] @ key[:, part].T / np.sqrt(size)
            for i in range(len(x)):
                for j in range(len(x)):
                    if j > i or not mask[j]:
                        scores[i, j] += -1e9
            weights = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(weights / weights.sum(1, keepdims=True) @ value[:, part])
        x = norm(x + np.concatenate(heads, 1) @ params[f"{name}_output"], params[f"{name}_attention_norm"])
        hidden = np.maximum(x @ params[f"{name}_in"]["kernel"] + params[f"{name}_in"]["bias"], 0)
        x = norm(x + hidden @ params[f"{name}_out"]["kernel"] + params[f"{name}_out"]["bias"], params[f"{name}_norm"])
    return x


def test_equals_the_written_out_transformer():
    module, params, items, mask = setup()
    result = encoded(module, params, items, mask)
    plain = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for row in range(3):
        expected = numpy_sasrec(plain, np.asarray(items[row], np.float64), np.asarray(mask[row]), CONFIG)
        real = np.asarray(mask[row])  # what stands at padded positions is never used
        np.testing.assert_allclose(np.asarray(result[row])[real], expected[real], rtol=2e-4, atol=2e-5)  # float32


def test_later_items_and_padding_change_nothing():
    module, params, items, mask = setup()
    result = encoded(module, params, items, mask)
    later = encoded(module, params, items.at[:, 4:].set(9.0), mask)
    np.testing.assert_allclose(result[1, :4], later[1, :4], rtol=1e-5, atol=1e-6)  # sum order
    padded = encoded(module, params, items.at[0, :2].set(9.0), mask)
    np.testing.assert_allclose(result[0, 2:], padded[0, 2:], rtol=1e-5, atol=1e-6)


def test_a_shorter_history_uses_the_last_positions():
    module, params, items, mask = setup()
    whole = encoded(module, params, items, mask)[0, -1]
    short = encoded(module, params, items[:, 2:], mask[:, 2:])[0, -1]
    np.testing.assert_allclose(whole, short, rtol=1e-5, atol=1e-6)


def test_named_steps_give_what_the_whole_histories_give():
    module, params, items, mask = setup()
    steps = jnp.append(jnp.flatnonzero(mask), jnp.array([mask.size] * 2))  # and two entries that stand for nothing
    chosen = items.reshape(-1, CONFIG.width).at[steps].get(mode="fill", fill_value=0)

    @jax.jit
    def of_steps(params, chosen):
        return module.apply({"params": params}, chosen, mask, train=False, steps=steps)[:-2]

    real = np.asarray(mask)

    @jax.jit
    def of_all(params, items):
        return encoded(module, params, items, mask)[real]

    np.testing.assert_allclose(of_steps(params, chosen), of_all(params, items), rtol=1e-5, atol=1e-6)  # sum order
    weights = jnp.asarray(np.random.default_rng(1).standard_normal((int(mask.sum()), CONFIG.width)), jnp.float32)
    gradients = jax.jit(jax.grad(lambda p, x: jnp.sum(weights * of_steps(p, x)), (0, 1)))(params, chosen)
    expected = jax.jit(jax.grad(lambda p, x: jnp.sum(weights * of_all(p, x)), (0, 1)))(params, items)
    expected = (expected[0], expected[1].reshape(-1, CONFIG.width).at[steps].get(mode="fill", fill_value=0))
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)  # sum order


def test_dropout_is_on_in_training_only():
    module, params, items, mask = setup()

    def run(train, key):
        return module.apply({"params": params}, items, mask, train=train, rngs={"dropout": jax.random.key(key)})

    assert not np.allclose(run(True, 0), run(True, 1))
    np.testing.assert_array_equal(run(False, 0), run(False, 1))


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="does not divide"):
        SasRecConfig(width=10, heads=4)


def test_masks_keep_the_asked_share_and_differ():
    shapes = [(200, 31), (4, 5, 100), (200, 31)]
    first, second, third = keep_masks(jax.random.key(3), shapes, 0.25)
    for mask, shape in zip((first, second, third), shapes, strict=True):
        assert mask.shape == shape
        spread = 4 * np.sqrt(0.25 * 0.75 / mask.size)  # four standard deviations
        assert abs(float(mask.mean()) - 0.75) < spread
    assert (first != third).any()
    assert (first != keep_masks(jax.random.key(4), shapes, 0.25)[0]).any()
    np.testing.assert_array_equal(first, keep_masks(jax.random.key(3), shapes, 0.25)[0])
    assert all(np.asarray(mask).all() for mask in keep_masks(jax.random.key(0), shapes, 0.0))


def test_masks_of_neighbouring_entries_and_steps_are_independent():
    rate, size, keys = 0.1, 20_000, [jax.random.fold_in(jax.random.key(0), step) for step in range(20)]
    masks = np.stack([keep_masks(key, [(size,)], rate)[0] for key in keys]).astype(float) - (1 - rate)
    variance = rate * (1 - rate)
    pairs = {lag: (masks[:, lag:] * masks[:, :-lag]).mean() for lag in (1, 2, 3, 8, 64)}
    pairs |= {f"step {lag}": (masks[lag:] * masks[:-lag]).mean() for lag in (1, 2, 7)}
    for name, covariance in pairs.items():
        # Five standard deviations of a mean of at least 13 steps of independent products.
        assert abs(covariance) < 5 * variance / np.sqrt(13 * (size - 64)), name


def test_what_is_kept_is_scaled_so_that_the_mean_stays():
    np.testing.assert_allclose(dropped(jnp.array([2.0, 3.0]), jnp.array([True, False]), 0.2), [2.5, 0.0], rtol=1e-6)
