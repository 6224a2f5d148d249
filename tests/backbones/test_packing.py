"""Rows of several texts: how full they are, and that neither sharing a row nor leaving tokens out changes states."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from mmrec_jax.backbones.backbone import load
from mmrec_jax.backbones.encode import Head, PooledEncoder, pad_tokens
from mmrec_jax.backbones.family import Tokens
from mmrec_jax.backbones.gelu import gelu
from mmrec_jax.backbones.packing import fill_rows
from mmrec_jax.backbones.pooling import pool
from tests.tiny_backbones import write_backbone


def test_every_text_is_in_one_row_and_rows_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 500)
    rows = fill_rows(lengths, 64)
    assert sorted(text for row in rows for text in row) == list(range(500))
    assert all(lengths[row].sum() <= 64 and len(row) <= 8 for row in rows)
    assert lengths.sum() / (64 * len(rows)) > 0.94
    assert max(len(row) for row in fill_rows([1] * 30, 64)) == 8
    assert fill_rows([], 64) == []


def test_positions_count_from_each_text_and_are_inside_the_table_for_padding() -> None:
    texts = jnp.asarray([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 2, 3, 3, 3]])
    tokens = Tokens(texts, texts > 0, texts)
    np.testing.assert_array_equal(tokens.positions, [[0, 1, 2, 0, 1, 0, 0], [0, 0, 1, 2, 0, 1, 2]])


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_texts_that_share_a_row_get_the_states_that_they_get_alone(family: str, tmp_path: Path) -> None:
    backbone = load(str(write_backbone(tmp_path, family)), max_tokens=20)
    rng = np.random.default_rng(0)
    ids = [rng.integers(4, 60, length).astype(np.int32) for length in rng.integers(3, 20, 30)]
    heads = [Head((0, 2), pooling) for pooling in ("mean", "cls", "last")]
    encoder = PooledEncoder(backbone, heads, batch=3)
    assert all(tokens.texts is not None for *_, tokens in encoder._batches(ids))
    alone = pad_tokens(ids, len(ids), 20)
    states = backbone.hidden_states(alone)
    for head, found in zip(heads, encoder(ids), strict=True):
        for position, layer in enumerate(head.layers):
            expected = pool(states[layer], alone.mask, head.pooling)
            # Sums over other lengths round otherwise.
            np.testing.assert_allclose(found[:, position], expected, atol=1e-5 * np.abs(expected).max())


def test_the_quick_gelu_is_the_exact_one() -> None:
    x = np.concatenate([np.linspace(-12, 12, 100_001), [-1e30, 1e30]])
    error = np.abs(np.asarray(gelu(jnp.asarray(x, jnp.float32)), np.float64) - x * ndtr(x))
    assert (error / np.maximum(1, np.abs(x))).max() < 3e-7  # two units in the last place of float32


def test_the_slope_of_the_quick_gelu_is_that_of_the_exact_one() -> None:
    x = np.linspace(-8, 8, 2001)
    slope = ndtr(x) + x * np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi)
    found = jax.vmap(jax.grad(gelu))(jnp.asarray(x, jnp.float32))
    assert np.abs(np.asarray(found, np.float64) - slope).max() < 1e-6  # a few roundings of numbers near 1


def test_where_only_class_tokens_are_kept_the_last_block_computes_no_others(tmp_path: Path) -> None:
    backbone = load(str(write_backbone(tmp_path, "vit")))
    pixels = np.random.default_rng(0).normal(size=(3, 28, 28, 3)).astype(np.float32)
    (found,) = PooledEncoder(backbone, [Head((0, 1, 2), "cls")], batch=2)(pixels)
    for layer, state in enumerate(backbone.hidden_states(jnp.asarray(pixels))):
        np.testing.assert_allclose(found[:, layer], state[:, 0], atol=1e-5)
