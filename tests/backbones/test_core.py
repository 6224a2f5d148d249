"""What the shared core promises for every family: methods at places, rematerialisation, dtype, rotary positions."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from mmrec_jax.backbones.backbone import Backbone, load
from mmrec_jax.backbones.config import ModalityConfig
from mmrec_jax.backbones.family import Tokens
from mmrec_jax.backbones.pooling import pool
from mmrec_jax.backbones.rotary import Rotary, rotate, turn_of_positions, turning_rates
from mmrec_jax.backbones.transformer import PROJECTIONS, visible_keys
from mmrec_jax.errors import ConfigError
from tests.tiny_backbones import write_backbone

TOKENS = Tokens(jnp.asarray([[2, 9, 14, 3], [2, 5, 3, 7]]), jnp.asarray([[True] * 4, [True] * 3 + [False]]))


class LowRank(nn.Module):
    """LoRA (arXiv 2106.09685) on a projection; zero where b is zero."""

    @nn.compact
    def __call__(self, inputs, outputs):
        small = nn.Dense(2, use_bias=False, name="a")(inputs)
        return outputs + nn.Dense(outputs.shape[-1], use_bias=False, name="b")(small)


def on_projections(place: str, layer: int, name: str) -> nn.Module | None:
    return LowRank(name=name) if place in PROJECTIONS else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Backbone:
    return load(str(folder))


def test_a_method_that_starts_as_zero_changes_nothing_and_is_trained_alike_with_rematerialisation(
    folder: Path, plain: Backbone
) -> None:
    gradients = []
    for remat in (False, True):
        adapted = load(str(folder), method=on_projections, remat=remat)
        shapes = jax.eval_shape(adapted.model.init, jax.random.key(0), TOKENS)["params"]
        frozen = traverse_util.flatten_dict(adapted.params)
        rng = np.random.default_rng(0)
        added = {
            path: np.float32(rng.normal(size=leaf.shape)) if path[-2] == "a" else np.zeros(leaf.shape, np.float32)
            for path, leaf in traverse_util.flatten_dict(shapes).items()
            if path not in frozen
        }
        assert len(added) == 2 * len(PROJECTIONS) * plain.sizes.depth

        def loss(added: dict, adapted=adapted, frozen=frozen) -> tuple[jax.Array, tuple[jax.Array, ...]]:
            states = adapted.model.apply({"params": traverse_util.unflatten_dict({**frozen, **added})}, TOKENS)
            return jnp.square(states[-1]).mean(), states

        assert ("remat" in str(jax.make_jaxpr(jax.grad(loss, has_aux=True))(added))) == remat
        gradient, states = jax.jit(jax.grad(loss, has_aux=True))(added)
        gradients.append(gradient)
        for state, expected in zip(states, plain.hidden_states(TOKENS), strict=True):
            # Two programs may be fused in different ways: float32 rounding.
            np.testing.assert_allclose(state, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    for path, value in gradients[0].items():
        # b is zero, so that a gets no gradient before the first step.
        assert (np.abs(value).max() > 0) == (path[-2] == "b"), path
        np.testing.assert_allclose(gradients[1][path], value, atol=1e-5 * max(float(np.abs(value).max()), 1e-3))


@pytest.mark.parametrize("name", ["llama", "roberta"])
def test_bfloat16_keeps_parameters_and_states_in_half_and_is_near_float32(name: str, tmp_path: Path) -> None:
    path = str(write_backbone(tmp_path, name))
    exact, half = load(path).hidden_states(TOKENS), load(path, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
    for layer, (state, expected) in enumerate(zip(half.hidden_states(TOKENS), exact, strict=True)):
        assert state.dtype == jnp.bfloat16
        # 8 bits of mantissa: a relative 0.4% a rounding, of which there are a few dozen on the way to the last layer.
        error = np.abs(np.asarray(state, np.float32) - expected).max() / np.abs(expected).max()
        assert error < 0.05, f"layer {layer}"
        assert pool(state, TOKENS.mask, "mean").dtype == jnp.float32


def test_a_dtype_that_no_encoder_has_is_an_error(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'float16' is unknown: use one of float32, bfloat16"):
        load(str(folder), dtype="float16")
    with pytest.raises(ConfigError, match="compute_dtype 'int8' is unknown: use one of float32, bfloat16"):
        ModalityConfig(template="{title}", compute_dtype="int8")


def test_no_mask_is_made_where_every_token_is_seen() -> None:
    assert visible_keys(None, causal=False, length=5) is None
    mask = jnp.asarray([[True, True, False]])
    np.testing.assert_array_equal(visible_keys(mask, causal=False, length=3)[0, 0], [[True, True, False]])
    expected = [[True, False, False], [True, True, False], [True, True, False]]
    np.testing.assert_array_equal(visible_keys(mask, causal=True, length=3)[0, 0], expected)


def test_scores_of_rotated_features_depend_on_the_distance_only() -> None:
    query, key = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    turn = turn_of_positions(Rotary(theta=100.0), 8, 12)
    shape = (1, 12, 1, 8)
    queries, keys = rotate(jnp.broadcast_to(query, shape), turn), rotate(jnp.broadcast_to(key, shape), turn)
    scores = np.asarray(jnp.einsum("bqhf,bkhf->qk", queries, keys))
    for distance in (0, 3, 7):
        np.testing.assert_allclose(np.diagonal(scores, distance), scores[0, distance], atol=1e-5)
    assert abs(scores[0, 3] - scores[0, 0]) > 1e-2


def test_llama3_scaling_keeps_pairs_that_turn_often_and_slows_those_that_turn_rarely() -> None:
    scaled = Rotary(theta=500000.0, scaling="llama3", factor=8.0, low_turns=1, high_turns=4, trained_positions=8192)
    rates, plain = turning_rates(scaled, 128), turning_rates(Rotary(theta=500000.0), 128)
    turns = plain * 8192 / (2 * np.pi)
    np.testing.assert_allclose(rates[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(rates[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert (rates[between] < plain[between]).all()
    assert (rates[between] > plain[between] / 8).all()
