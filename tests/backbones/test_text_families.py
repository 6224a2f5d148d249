"""What the text families read from their files, and which computations they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmrec_jax.backbones.backbone import load
from mmrec_jax.backbones.family import Tokens
from mmrec_jax.backbones.pooling import pool
from mmrec_jax.backbones.registry import find_family
from mmrec_jax.backbones.transformer import TransformerConfig
from mmrec_jax.errors import BackboneError
from tests.tiny_backbones import golden, golden_weights, write_backbone

LLAMA3 = {
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def sizes_of(name: str, **changes: object) -> TransformerConfig:
    """The core's sizes of a golden config.json with changes; None takes a key out."""
    config = {**json.loads(golden(name)[1]["config"]), **changes}
    config = {key: value for key, value in config.items() if value is not None}
    return find_family(config["model_type"], "config.json").build(config, None).transformer


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("roberta", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("roberta", {"is_decoder": True}, "is_decoder is True"),
        ("roberta", {"pad_token_id": -1}, "pad_token_id is -1"),
        ("distilbert", {"activation": "mish"}, "activation 'mish' is unknown"),
        ("distilbert", {"n_heads": 5}, "5 attention heads do not divide the width 24"),
        ("clip_text", {"hidden_size": 25}, "4 attention heads do not divide the width 25"),
        ("clip_text", {"model_type": "clip"}, "text_config is None, which is no object"),
        ("llama", {"num_key_value_heads": 3}, "3 heads of keys and values do not divide 4"),
        ("llama", {"head_dim": 9}, "an even head width, not 9"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ("llama", {"is_causal": False}, "attention to later tokens is another computation"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "'yarn' are another computation"),
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "factor is None"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ("qwen2", {"use_sliding_window": True}, "the last tokens only is another computation"),
    ],
)
def test_another_computation_or_sizes_that_do_not_fit_are_refused(name: str, changes: dict, message: str) -> None:
    config = {**json.loads(golden(name)[1]["config"]), **changes}
    with pytest.raises(BackboneError, match=message):
        find_family(config["model_type"], "config.json", "text").build(config, None)


def test_rotary_positions_are_read_by_their_older_names_too() -> None:
    today = sizes_of("llama")
    assert today.rotary is not None
    assert today.rotary.scaling == "llama3"
    for kind in ("rope_type", "type"):
        older = sizes_of("llama", rope_parameters=None, rope_theta=50.0, rope_scaling={kind: "llama3", **LLAMA3})
        assert older == today
    plain = sizes_of("llama", rope_parameters=None, rope_theta=1e6).rotary
    assert plain is not None
    assert (plain.theta, plain.scaling) == (1e6, "none")


def test_absent_heads_of_keys_are_as_many_as_heads() -> None:
    assert sizes_of("llama", num_key_value_heads=None, head_dim=None).key_heads == 4


def test_a_decoder_lists_missing_misshapen_and_unmapped_tensors(tmp_path: Path) -> None:
    weights = golden_weights(golden("llama")[0])
    del weights["model.layers.1.mlp.gate_proj.weight"]
    weights["model.layers.0.self_attn.k_proj.weight"] = np.ones((40, 24), np.float32)
    weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(10, np.float32)
    weights["model.layers.0.self_attn.q_proj.bias"] = np.ones(40, np.float32)
    with pytest.raises(BackboneError) as caught:
        load(str(write_backbone(tmp_path, "llama", weights)))
    message = str(caught.value)
    assert "4 problems" in message
    assert "layers.1.mlp.gate_proj.weight is missing" in message
    assert "layers.0.self_attn.k_proj.weight [40, 24] does not fit" in message
    assert "layers.0.self_attn.q_norm.weight [10] has no place" in message
    assert "layers.0.self_attn.q_proj.bias [40] has no place" in message


def test_the_text_tower_of_a_whole_clip_is_the_tower_alone(tmp_path: Path) -> None:
    alone = write_backbone(tmp_path / "alone", "clip_text")
    whole = tmp_path / "whole"
    write_backbone(whole, "clip_text")
    config = json.loads((alone / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": config}))
    tower = {f"text_model.{name}": tensor for name, tensor in load_file(alone / "model.safetensors").items()}
    others = ("text_projection.weight", "visual_projection.weight", "vision_model.post_layernorm.bias", "logit_scale")
    save_file(tower | dict.fromkeys(others, np.ones(2, np.float32)), whole / "model.safetensors")

    with pytest.raises(BackboneError, match="model_type 'clip' encodes image and text: say which kind"):
        load(str(whole))
    tokens = Tokens(jnp.asarray([[2, 9, 14, 3]]), jnp.ones((1, 4), bool))
    expected = load(str(alone)).hidden_states(tokens)
    for state, truth in zip(load(str(whole), kind="text").hidden_states(tokens), expected, strict=True):
        np.testing.assert_array_equal(state, truth)


def test_a_model_of_another_kind_than_asked_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"config.json: model_type 'bert' encodes text, not image"):
        load(str(write_backbone(tmp_path)), kind="image")


def test_older_names_of_a_norm_are_read(tmp_path: Path) -> None:
    weights = golden_weights(golden("bert")[0])
    older = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in weights.items()
    }
    assert older.keys() != weights.keys()
    norm = load(str(write_backbone(tmp_path / "older", weights=older))).params["norm"]
    np.testing.assert_array_equal(norm["scale"], weights["embeddings.LayerNorm.weight"])
    with pytest.raises(BackboneError, match=r"tensors .*LayerNorm.weight and .*LayerNorm.gamma are one and the same"):
        load(str(write_backbone(tmp_path / "both", weights=older | weights)))


@pytest.mark.parametrize("name", ["roberta", "llama"])
def test_neither_padding_nor_what_stands_in_it_changes_a_text(name: str, tmp_path: Path) -> None:
    backbone = load(str(write_backbone(tmp_path, name)))
    ids = jnp.asarray([[2, 9, 14, 30, 3]])
    alone = backbone.hidden_states(Tokens(ids, jnp.ones((1, 5), bool)))
    mask = jnp.zeros((2, 11), bool).at[0, :5].set(True)
    padded = Tokens(jnp.pad(ids, ((0, 1), (0, 6)), constant_values=7), mask)
    for short, long in zip(alone, backbone.hidden_states(padded), strict=True):
        # The masked softmax sums over more zeros, which may round otherwise.
        np.testing.assert_allclose(long[0, :5], short[0], atol=2e-6 * float(jnp.abs(short).max()))
        np.testing.assert_allclose(pool(long, mask, "last")[0], short[0, -1], atol=2e-6 * float(jnp.abs(short).max()))


def test_a_token_of_a_decoder_sees_none_after_it(tmp_path: Path) -> None:
    backbone = load(str(write_backbone(tmp_path, "llama")))
    mask = jnp.ones((1, 6), bool)
    first = backbone.hidden_states(Tokens(jnp.asarray([[2, 9, 14, 30, 3, 8]]), mask))[-1]
    changed = backbone.hidden_states(Tokens(jnp.asarray([[2, 9, 14, 50, 3, 8]]), mask))[-1]
    np.testing.assert_array_equal(first[0, :3], changed[0, :3])
    assert (np.abs(first - changed)[0, 3:].max(axis=-1) > 1e-3).all()


def test_pooling_takes_the_last_token_that_is_not_padding() -> None:
    state = jnp.arange(36.0).reshape(3, 4, 3)
    mask = jnp.asarray([[True, True, False, False], [True] * 4, [False] * 4])
    np.testing.assert_array_equal(pool(state, mask, "last"), [state[0, 1], state[1, 3], state[2, 0]])
    np.testing.assert_array_equal(pool(state, None, "last"), state[:, 3])
