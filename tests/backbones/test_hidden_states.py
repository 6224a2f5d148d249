"""Hidden states of every family against golden files made with transformers + torch (golden/make_golden.py).

Tolerance: 1e-4 of a layer's largest value, which is what the project promises; float32 rounding gives about 1e-6.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from mmrec_jax.backbones.backbone import Backbone, load
from mmrec_jax.backbones.encode import Head, PooledEncoder, pad_tokens, padded_length
from mmrec_jax.backbones.family import Sound, Tokens
from mmrec_jax.backbones.patches import bicubic_matrix, interpolate_positions
from mmrec_jax.backbones.pooling import pool
from mmrec_jax.backbones.transformer import PLACES
from tests.tiny_backbones import GOLDEN, golden, write_backbone

FAMILIES = sorted(path.stem for path in GOLDEN.glob("*.safetensors") if not path.stem.startswith("real_"))


def case_inputs(tensors: dict[str, np.ndarray], case: int) -> Tokens | Sound | jax.Array:
    if f"{case}/inputs/ids" in tensors:
        return Tokens(jnp.asarray(tensors[f"{case}/inputs/ids"]), jnp.asarray(tensors[f"{case}/inputs/mask"]))
    if f"{case}/inputs/sound" in tensors:
        return Sound(jnp.asarray(tensors[f"{case}/inputs/sound"]), jnp.asarray(tensors[f"{case}/inputs/lengths"]))
    return jnp.asarray(tensors[f"{case}/inputs/pixels"])


def assert_layers_equal(states, tensors: dict[str, np.ndarray], case: int, keep=slice(None)) -> None:
    layers = [key for key in tensors if key.startswith(f"{case}/states/")]
    assert len(states) == len(layers)
    for layer, state in enumerate(states):
        expected = tensors[f"{case}/states/{layer}"]
        error = np.abs(np.asarray(state)[:, keep] - expected).max()
        assert error < 1e-4 * np.abs(expected).max(), f"layer {layer}"


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_equals_transformers_with_padding_and_odd_sizes(name: str, tmp_path: Path) -> None:
    tensors, _ = golden(name)
    backbone = load(str(write_backbone(tmp_path, name)))
    for case in sorted({int(key.split("/")[0]) for key in tensors if "/states/" in key}):
        states = backbone.hidden_states(case_inputs(tensors, case))
        assert_layers_equal(states, tensors, case)
        last = backbone.model.apply({"params": backbone.params}, states[-1], method="final_norm")
        np.testing.assert_allclose(last, tensors[f"{case}/last"], atol=1e-4 * np.abs(tensors[f"{case}/last"]).max())


@pytest.mark.shared
@pytest.mark.parametrize("name", ["minilm-l6", "dinov2-small", "whisper-tiny-en-encoder"])
def test_real_weights_give_the_states_of_transformers(name: str, shared: Path) -> None:
    tensors, metadata = golden(f"real_{name}")
    backbone = load(str(shared / "weights" / name))
    if name == "minilm-l6":
        inputs = case_inputs(tensors, 0)
        ids = backbone.preprocess(json.loads(metadata["texts"]))
        for row, tokens in enumerate(ids):
            np.testing.assert_array_equal(tokens, np.asarray(inputs.ids)[row, : len(tokens)])
            assert np.asarray(inputs.mask)[row].sum() == len(tokens)
    elif name == "whisper-tiny-en-encoder":
        values = np.sin(np.mgrid[:3000, :80].prod(0) / 40).astype(np.float32)[None]
        inputs = Sound(jnp.asarray(values), jnp.asarray([3000]))
    else:
        grid = np.mgrid[:224, :210].astype(np.float32) / 40
        pixels = np.stack([np.sin(grid[0]), np.cos(grid[1]), np.sin(grid.sum(0))], axis=-1)[None]
        inputs = jnp.asarray(pixels.astype(np.float32))
    assert_layers_equal(backbone.hidden_states(inputs), tensors, 0, keep=tensors["tokens"])


def test_padding_changes_no_states(tmp_path: Path) -> None:
    backbone = load(str(write_backbone(tmp_path)))
    ids = jnp.asarray([[2, 9, 14, 30, 3]])
    alone = backbone.hidden_states(Tokens(ids, jnp.ones((1, 5), bool)))
    padded = Tokens(jnp.pad(ids, ((0, 1), (0, 6)), constant_values=7), jnp.zeros((2, 11), bool).at[0, :5].set(True))
    for short, long in zip(alone, backbone.hidden_states(padded), strict=True):
        # The masked softmax sums over more zeros, which may round otherwise.
        np.testing.assert_allclose(long[0, :5], short[0], atol=2e-6 * float(jnp.abs(short).max()))


def test_pooling_by_mean_leaves_padding_out_and_by_cls_takes_the_first_token() -> None:
    state = jnp.arange(24.0).reshape(2, 4, 3)
    mask = jnp.asarray([[True, True, False, False], [True] * 4])
    np.testing.assert_allclose(pool(state, mask, "mean"), [state[0, :2].mean(0), state[1].mean(0)], rtol=1e-6)
    np.testing.assert_allclose(pool(state, None, "mean"), state.mean(1), rtol=1e-6)
    np.testing.assert_array_equal(pool(state, mask, "cls"), state[:, 0])
    assert np.isfinite(pool(state, jnp.zeros_like(mask), "mean")).all()


def test_pooled_encoder_gives_each_head_its_layers_in_the_order_of_the_inputs(tmp_path: Path) -> None:
    backbone = load(str(write_backbone(tmp_path)), max_tokens=23)
    # The longest text is cut to 23 tokens, which is no padded length: padding stops at the last position.
    texts = ["abc", "a long text of many many words", "x", "two words", "abc"]
    ids = backbone.preprocess(texts)
    encoder = PooledEncoder(backbone, [Head((0, 3), "mean"), Head((2,), "cls")], batch=2)
    mean, first = encoder(ids)
    assert mean.shape == (5, 2, 24)
    assert first.shape == (5, 1, 24)
    states = backbone.hidden_states(pad_tokens(ids, batch=5, longest=24))
    for row, tokens in enumerate(ids):
        np.testing.assert_allclose(mean[row, 1], np.asarray(states[3])[row, : len(tokens)].mean(0), atol=1e-5)
        np.testing.assert_allclose(first[row, 0], np.asarray(states[2])[row, 0], atol=1e-5)


def test_texts_of_many_lengths_need_few_shapes() -> None:
    lengths = {padded_length(length) for length in range(1, 513)}
    assert len(lengths) == 20
    assert all(padded_length(length) >= length for length in range(1, 513))
    assert max(padded_length(length) / length for length in range(33, 513)) < 1.26


def test_positions_stay_as_they_are_on_their_own_grid_and_rows_of_weights_sum_to_one() -> None:
    positions = jnp.arange(2 * 10.0).reshape(1, 10, 2)
    assert interpolate_positions(positions, (3, 3), (3, 3)) is positions
    np.testing.assert_allclose(bicubic_matrix(37, 16).sum(axis=1), 1, atol=1e-6)
    flat = jnp.ones((1, 10, 2))
    np.testing.assert_allclose(interpolate_positions(flat, (3, 3), (5, 2)), np.ones((1, 11, 2)), atol=1e-6)


class AddedDense(nn.Module):
    """A method for the seam: adds a learned function of the place's inputs to its outputs."""

    @nn.compact
    def __call__(self, inputs, outputs):
        return outputs + nn.Dense(outputs.shape[-1], use_bias=False)(inputs)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load(str(write_backbone(tmp_path_factory.mktemp("bert"))))


@pytest.mark.parametrize("place", [place for place in PLACES if place not in ("gate", "tokens")])
def test_a_method_put_at_a_place_changes_the_states_from_its_block_on(place: str, plain: Backbone) -> None:
    def method(at: str, layer: int, name: str) -> nn.Module | None:
        return AddedDense(name=name) if at == place and layer == 1 else None

    adapted = load(plain.spec, method=method)
    tokens = Tokens(jnp.asarray([[2, 9, 14, 3]]), jnp.ones((1, 4), bool))
    shapes = traverse_util.flatten_dict(jax.eval_shape(adapted.model.init, jax.random.key(0), tokens)["params"])
    frozen = traverse_util.flatten_dict(plain.params)
    (added,) = shapes.keys() - frozen.keys()
    assert added[1] == "block_1"
    assert f"added_{place}" in added

    kernel = np.random.default_rng(0).normal(size=shapes[added].shape).astype(np.float32)
    merged = traverse_util.unflatten_dict({**frozen, added: kernel})
    states, expected = replace(adapted, params=merged).hidden_states(tokens), plain.hidden_states(tokens)
    for layer in (0, 1):
        # Two programs may be fused in different ways: float32 rounding.
        np.testing.assert_allclose(states[layer], expected[layer], atol=1e-5)
    assert np.abs(np.asarray(states[2] - expected[2])).max() > 1e-3
