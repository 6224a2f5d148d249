"""BEiT-3 against a golden file made with torchscale (golden/make_golden_beit3.py), its files, and methods in branches.

Tolerance: 1e-4 of a layer's largest value, which is what the project promises; float32 rounding gives about 1e-6.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from safetensors.numpy import save_file

from mmrec_jax.backbones.backbone import Backbone, load
from mmrec_jax.backbones.convert_beit3 import config_of, convert, preprocessing, read_tokenizer
from mmrec_jax.backbones.families.beit3 import PRESETS, Beit3, ImageText, build, joined
from mmrec_jax.backbones.family import Tokens
from mmrec_jax.backbones.sentencepiece import xlm_roberta_tokenizer
from mmrec_jax.errors import BackboneError
from mmrec_jax.types import Params
from tests.tiny_backbones import golden, golden_weights, write_tokenizer

TENSORS, METADATA = golden("multiway/beit3")
PIXELS = jnp.asarray(TENSORS["inputs/pixels"])
TOKENS = Tokens(jnp.asarray(TENSORS["inputs/ids"]), jnp.asarray(TENSORS["inputs/mask"]))
VISION_TOKENS = 17  # a class token and 4 x 4 patches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the converter writes it."""
    made = tmp_path_factory.mktemp("beit3")
    save_file(golden_weights(TENSORS), made / "model.safetensors")
    (made / "config.json").write_text(METADATA["config"])
    (made / "preprocessor_config.json").write_text(json.dumps(preprocessing(28)))
    write_tokenizer(made / "tokenizer.json")
    return made


@pytest.fixture(scope="module")
def image(folder: Path) -> Backbone:
    return load(str(folder), kind="image")


@pytest.fixture(scope="module")
def text(folder: Path) -> Backbone:
    return load(str(folder), kind="text")


def assert_pass_equals(name: str, states, last) -> None:
    expected = [TENSORS[f"{name}/{layer}"] for layer in range(4)]
    for layer, (state, truth) in enumerate(zip([*states, last], expected, strict=True)):
        assert np.abs(np.asarray(state) - truth).max() < 1e-4 * np.abs(truth).max(), f"layer {layer}"


def final_norm(model: nn.Module, params: Params, state, *split: int):
    return model.apply({"params": params}, state, *split, method="final_norm")


def test_images_take_the_vision_branch(image: Backbone) -> None:
    states = image.hidden_states(PIXELS)
    assert_pass_equals("image", states, final_norm(image.model, image.params, states[-1]))
    assert set(image.params["transformer"]["block_0"]) == {"vision"}
    made = image.model.apply({"params": image.params}, PIXELS, method="embed")
    np.testing.assert_allclose(made, TENSORS["image/embedding"], atol=1e-5)


def test_texts_take_the_language_branch(text: Backbone) -> None:
    states = text.hidden_states(TOKENS)
    assert_pass_equals("text", states, final_norm(text.model, text.params, states[-1]))
    assert set(text.params["transformer"]["block_0"]) == {"language"}
    assert "patches" not in text.params
    made = text.model.apply({"params": text.params}, TOKENS, method="embed")
    np.testing.assert_allclose(made, TENSORS["text/embedding"], atol=1e-5)


def test_an_image_and_a_text_attend_to_each_other_in_the_joined_model(image: Backbone, text: Backbone) -> None:
    model, params = joined(image, text)
    states = jax.jit(model.apply)({"params": params}, ImageText(PIXELS, TOKENS))
    assert_pass_equals("joint", states, final_norm(model, params, states[-1], VISION_TOKENS))
    alone = jax.jit(model.apply)({"params": params}, PIXELS)
    np.testing.assert_allclose(alone[-1], TENSORS["image/2"], atol=1e-4 * np.abs(TENSORS["image/2"]).max())
    with pytest.raises(ValueError, match="how many of the tokens are the image's"):
        final_norm(model, params, states[-1])
    with pytest.raises(ValueError, match="images or texts"):
        model.apply({"params": params}, ImageText(PIXELS, TOKENS), method="embed")


def test_backbones_that_are_no_pair_are_not_joined(image: Backbone, text: Backbone, folder: Path) -> None:
    with pytest.raises(BackboneError, match="not the image and the text backbone of one BEiT-3 folder"):
        joined(text, image)
    with pytest.raises(BackboneError, match="loaded with the same method, dtype"):
        joined(image, load(str(folder), kind="text", dtype="bfloat16"))


def test_a_folder_of_both_kinds_must_be_told_which(folder: Path) -> None:
    with pytest.raises(BackboneError, match="encodes image and text: say which kind"):
        load(str(folder))


def test_the_joined_model_starts_at_random_with_the_parameters_of_both_branches(
    image: Backbone, text: Backbone
) -> None:
    model, params = joined(image, text)
    started = jax.eval_shape(model.init, jax.random.key(0), ImageText(PIXELS, TOKENS))["params"]
    assert jax.tree.map(jnp.shape, started) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize(("name", "millions"), [("beit3-base", 222), ("beit3-large", 674)])
def test_presets_have_the_published_number_of_parameters(name: str, millions: int) -> None:
    sizes: dict[str, int] = {}
    for branch in ("vision", "language"):
        encoder = build(PRESETS[name], None, branch)
        shapes = jax.eval_shape(encoder.module.init, jax.random.key(0), encoder.example)["params"]
        sizes |= {path: leaf.size for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}
    assert sum(sizes.values()) // 10**6 == millions


class Parallel(nn.Module):
    """A New Knowledge Extractor: adds a function of the residual stream."""

    @nn.compact
    def __call__(self, inputs, outputs):
        return outputs + nn.Dense(outputs.shape[-1], use_bias=False)(inputs)


class Sequential(nn.Module):
    """An Alignment Enhancer: adds a function of what leaves the block."""

    @nn.compact
    def __call__(self, inputs, outputs):
        return outputs + nn.Dense(outputs.shape[-1], use_bias=False)(outputs)


def multiway_adapter(place: str, layer: int, name: str, *, branch: str = "") -> nn.Module | None:
    if place == "feed_forward_residual" and (layer, branch) != (0, "language"):
        return Parallel(name=name)
    return Sequential(name=name) if place == "block" else None


def test_a_method_is_told_the_branch_and_shares_the_block_place(image: Backbone, text: Backbone) -> None:
    plain, params = joined(image, text)
    model = plain.clone(method=multiway_adapter)
    shapes = jax.eval_shape(model.init, jax.random.key(0), ImageText(PIXELS, TOKENS))["params"]
    made = traverse_util.flatten_dict(shapes, sep="/")
    frozen = traverse_util.flatten_dict(params, sep="/")
    rng = np.random.default_rng(0)
    added = {
        path: jnp.asarray(rng.normal(size=leaf.shape), "float32") for path, leaf in made.items() if path not in frozen
    }
    assert sorted(path.removesuffix("/Dense_0/kernel").removeprefix("transformer/") for path in added) == [
        "block_0/added_block",
        "block_0/vision/added_feed_forward_residual",
        "block_1/added_block",
        "block_1/language/added_feed_forward_residual",
        "block_1/vision/added_feed_forward_residual",
    ]
    adapted = traverse_util.unflatten_dict({**frozen, **added}, sep="/")
    silent = traverse_util.unflatten_dict({**frozen, **{path: 0 * leaf for path, leaf in added.items()}}, sep="/")
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply({"params": silent}, TOKENS)[-1], text.hidden_states(TOKENS)[-1], atol=1e-4)
    # The shared module acts in both passes; in the language branch of block 0 nothing else was added.
    changed = apply({"params": adapted}, TOKENS)[1] - text.hidden_states(TOKENS)[1]
    expected = text.hidden_states(TOKENS)[1] @ added["transformer/block_0/added_block/Dense_0/kernel"]
    np.testing.assert_allclose(changed, expected, atol=1e-4 * np.abs(expected).max())
    moved = apply({"params": adapted}, PIXELS)[1] - image.hidden_states(PIXELS)[1]
    assert np.abs(moved).max() > 1e-3


class Inputs(nn.Module):
    """Gives what a place takes in place of what it gives."""

    def __call__(self, inputs, outputs):
        return inputs


class Nothing(nn.Module):
    """Adds nothing to the residual stream."""

    def __call__(self, inputs, outputs):
        return jnp.zeros_like(outputs)


def test_the_feed_forward_residual_takes_the_stream_as_it_is(image: Backbone) -> None:
    def method(place: str, layer: int, name: str, *, branch: str = "") -> nn.Module | None:
        return {"attention": Nothing, "feed_forward_residual": Inputs}.get(place, lambda name: None)(name=name)

    states = image.model.clone(method=method).apply({"params": image.params}, PIXELS)
    np.testing.assert_array_equal(states[1], states[0])
    np.testing.assert_array_equal(states[2], states[0])


def field(number: int, wire: int, data: bytes) -> bytes:
    """One field of a protocol buffer, shorter than 128 bytes."""
    return bytes([number << 3 | wire]) + (bytes([len(data)]) if wire == 2 else b"") + data


def write_sentencepiece(path: Path, kind: int = 1) -> Path:
    """A small unigram model: "▁a", "▁ab", "b" and "▁"."""
    scores = {"<unk>": 0.0, "<s>": 0.0, "</s>": 0.0, "▁a": -1.0, "▁ab": -1.5, "b": -2.0, "▁": -3.0}
    pieces = [
        field(1, 2, field(1, 2, piece.encode()) + field(2, 5, struct.pack("<f", score)))
        for piece, score in scores.items()
    ]
    path.write_bytes(b"".join(pieces) + field(2, 2, field(3, 0, bytes([kind]))))
    return path


def test_a_sentencepiece_file_gives_fairseq_ids(tmp_path: Path) -> None:
    tokenizer = xlm_roberta_tokenizer(write_sentencepiece(tmp_path / "beit3.spm"))
    assert tokenizer.get_vocab_size() == 9  # <pad> and <mask> are not in the file
    # "ab" is one piece (-1.5), not two (-3); "?" is unknown behind a lone space.
    assert tokenizer.encode("ab  abb ?").ids == [0, 5, 5, 6, 7, 3, 2]
    assert tokenizer.encode("").ids == [0, 2]


def test_files_that_are_no_unigram_model_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"tokenizer\.json with transformers"):
        xlm_roberta_tokenizer(write_sentencepiece(tmp_path / "bpe.spm", kind=2))
    whole = write_sentencepiece(tmp_path / "beit3.spm").read_bytes()
    for damaged in (whole[:-3], whole[1:], b"", b"\xff" * 40):
        (tmp_path / "damaged.spm").write_bytes(damaged)
        with pytest.raises(BackboneError, match="is not a sentencepiece model"):
            xlm_roberta_tokenizer(tmp_path / "damaged.spm")


def test_sizes_follow_from_the_checkpoints_shapes() -> None:
    weights = golden_weights(TENSORS)
    assert config_of(weights, 3, "x.pth").items() >= json.loads(METADATA["config"]).items()
    with pytest.raises(BackboneError, match=r"x\.pth is no BEiT-3 checkpoint.*text_embed"):
        config_of({"model.weight": weights["logit_scale"]}, 0, "x.pth")


def test_the_converter_leaves_a_used_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BackboneError, match="not an empty folder"):
        convert(tmp_path / "x.pth", tmp_path / "beit3.spm", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_the_converter_says_that_it_needs_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackboneError, match=r"needs torch: pip install \"mmrec_jax\[parity\]\""):
        convert(tmp_path / "x.pth", tmp_path / "beit3.spm", tmp_path / "out")


def test_tokenizers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    assert read_tokenizer(tmp_path / "tokenizer.json", 60).get_vocab_size() == 60
    with pytest.raises(BackboneError, match="has 60 tokens, but the checkpoint has embeddings for 59"):
        read_tokenizer(tmp_path / "tokenizer.json", 59)
    for absent in ("other.json", "beit3.spm"):
        with pytest.raises(BackboneError, match=absent):
            read_tokenizer(tmp_path / absent, 60)


def test_a_module_without_retrieval_heads_embeds_nothing(image: Backbone) -> None:
    model = image.model.clone(retrieval=False)
    assert isinstance(model, Beit3)
    with pytest.raises(ValueError, match="with retrieval heads"):
        model.apply({"params": image.params}, PIXELS, method="embed")


def test_half_precision_with_rematerialisation_is_near_float32(folder: Path) -> None:
    half = load(str(folder), kind="image", dtype="bfloat16", remat=True)
    states = half.hidden_states(PIXELS.astype("bfloat16"))
    assert states[-1].dtype == half.params["patches"]["cls_token"].dtype == jnp.bfloat16
    # bfloat16 has 8 bits; some tens of roundings add up over two blocks.
    error = jnp.abs(states[-1].astype("float32") - TENSORS["image/2"]).max()
    assert error < 0.05 * np.abs(TENSORS["image/2"]).max()

    def gradient(pixels: jax.Array) -> jax.Array:
        return jax.grad(lambda given: half.model.apply({"params": half.params}, given)[-1].var())(pixels)

    assert "remat" in str(jax.make_jaxpr(gradient)(PIXELS))
