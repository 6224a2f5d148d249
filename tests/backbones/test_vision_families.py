"""Image and video encoders: towers by kind, pooling without class tokens, frames, processors, files of older making."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmrec_jax.backbones.backbone import identify, load
from mmrec_jax.backbones.config import ModalityConfig
from mmrec_jax.backbones.encode import Head, PooledEncoder
from mmrec_jax.backbones.image import read_image_preprocessor
from mmrec_jax.backbones.patches import antialiased_matrix
from mmrec_jax.backbones.pooling import pool, pool_frames
from mmrec_jax.backbones.video import VideoPreprocessor
from mmrec_jax.errors import BackboneError, ConfigError
from tests.tiny_backbones import golden, golden_weights, write_backbone


def write_clip(folder: Path, **changes) -> Path:
    """Both towers of CLIP in one checkpoint, made of the golden ones."""
    (text, text_config), (image, image_config) = golden("clip_text"), golden("clip_vision")
    towers = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in golden_weights(text).items()}
    towers |= golden_weights(image)
    towers |= {"logit_scale": np.full((), 2.6, np.float32), "text_projection.weight": np.ones((8, 24), np.float32)}
    write_backbone(folder, "clip_text", towers)
    write_backbone(folder, "clip_vision", towers)
    config = {
        "model_type": "clip",
        "text_config": json.loads(text_config["config"]),
        "vision_config": json.loads(image_config["config"]),
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_modalitys_kind_picks_the_tower_of_clip(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    text, image = load(str(folder), kind="text"), load(str(folder), kind="image")
    assert (text.family.kind, text.sizes.depth, text.class_tokens) == ("text", 3, 1)
    assert (image.family.kind, image.sizes.depth) == ("image", 2)
    alone = load(str(write_backbone(tmp_path / "alone", "clip_vision")))
    pixels = jnp.asarray(golden("clip_vision")[0]["0/inputs/pixels"])
    for state, expected in zip(image.hidden_states(pixels), alone.hidden_states(pixels), strict=True):
        np.testing.assert_array_equal(state, expected)
    with pytest.raises(BackboneError, match="encodes image and text: say which kind"):
        load(str(folder))
    with pytest.raises(BackboneError, match="encodes image and text, not audio"):
        load(str(folder), kind="audio")


def test_an_older_clip_says_its_sizes_in_vision_config_dict(tmp_path: Path) -> None:
    config = json.loads(golden("clip_vision")[1]["config"])
    folder = write_clip(tmp_path, vision_config={"hidden_size": 99}, vision_config_dict=config)
    assert load(str(folder), kind="image").sizes.width == 24


def test_an_encoder_without_class_token_has_no_cls_pooling(tmp_path: Path) -> None:
    for name in ("siglip_vision", "videomae"):
        backbone = load(str(write_backbone(tmp_path / name, name)))
        with pytest.raises(ConfigError, match=r"pooling 'cls': .* has no class token; use 'mean'"):
            PooledEncoder(backbone, [Head((0,), "mean"), Head((2,), "cls")], batch=2)


def test_the_mean_leaves_registers_out_and_keeps_the_class_token(tmp_path: Path) -> None:
    state = jnp.arange(2 * 7 * 3.0).reshape(2, 7, 3)
    kept = np.asarray(state)[:, [0, 4, 5, 6]].mean(axis=1)
    np.testing.assert_allclose(pool(state, None, "mean", class_tokens=1, registers=3), kept, rtol=1e-6)
    assert load(str(write_backbone(tmp_path, "dinov2_registers"))).registers == 3


def test_deit_has_two_class_tokens_that_pooling_averages(tmp_path: Path) -> None:
    backbone = load(str(write_backbone(tmp_path, "deit")))
    assert backbone.class_tokens == 2
    pixels = golden("deit")[0]["0/inputs/pixels"]
    (pooled,) = PooledEncoder(backbone, [Head((1,), "cls")], batch=2)(list(pixels))
    expected = golden("deit")[0]["0/states/1"][:, :2].mean(axis=1)
    np.testing.assert_allclose(pooled[:, 0], expected, atol=1e-4 * np.abs(expected).max())


def test_an_image_encoder_reads_a_video_frame_by_frame(tmp_path: Path) -> None:
    folder = str(write_backbone(tmp_path, "vit"))
    backbone = load(folder, kind="video", frames=3)
    assert isinstance(backbone.preprocess, VideoPreprocessor)
    assert (backbone.preprocess.frames, load(folder, kind="video").preprocess.fingerprint["frames"]) == (3, 8)
    videos = np.random.default_rng(0).normal(size=(3, 3, 28, 28, 3)).astype(np.float32)
    heads = [Head((0, 2), "cls"), Head((1,), "mean", "max")]
    first, largest = PooledEncoder(backbone, heads, batch=2)(list(videos))
    states = backbone.hidden_states(jnp.asarray(videos.reshape(9, 28, 28, 3)))
    frames = [np.asarray(state).reshape(3, 3, -1, 24) for state in states]
    # Two programs may be fused in different ways: float32 rounding.
    np.testing.assert_allclose(first[:, 1], frames[2][:, :, 0].mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(largest[:, 0], frames[1].mean(axis=2).max(axis=1), atol=1e-5)


def test_frames_are_pooled_by_their_mean_or_their_largest_values() -> None:
    vectors = jnp.asarray([[[1.0, 5.0], [3.0, 1.0]]])
    np.testing.assert_array_equal(pool_frames(vectors, "mean"), [[2.0, 3.0]])
    np.testing.assert_array_equal(pool_frames(vectors, "max"), [[3.0, 5.0]])


def test_a_video_encoder_takes_the_frames_and_sizes_of_its_config(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path, "videomae")
    backbone = load(str(folder))
    assert backbone.preprocess.frames == 4
    assert identify(str(folder), "video", 8)["preprocessing"] == backbone.preprocess.fingerprint
    assert load(str(folder), kind="video", frames=4).preprocess == backbone.preprocess
    with pytest.raises(ConfigError, match=r"frames is 3, but the video encoder .* takes 4"):
        load(str(folder), frames=3)
    with pytest.raises(ConfigError, match=r"frame_pooling: .* encodes all frames as one"):
        PooledEncoder(backbone, [Head((0,), "mean", "max")], batch=2)
    with pytest.raises(ValueError, match="3 frames of 28 x 28 pixels, but the encoder has positions for 4 of 28 x 28"):
        backbone.hidden_states(jnp.zeros((1, 3, 28, 28, 3)))
    with pytest.raises(BackboneError, match="encodes video, not image"):
        load(str(folder), kind="image")
    processor = {"image_processor_type": "VideoMAEImageProcessor", "size": {"shortest_edge": 30}}
    for crop, made in (({"crop_size": 24}, "frames of 24 x 24 pixels"), ({"do_center_crop": False}, "several sizes")):
        (folder / "preprocessor_config.json").write_text(json.dumps(processor | crop))
        with pytest.raises(BackboneError, match=f"makes .*{made}, but the encoder of config.json takes 28 x 28"):
            load(str(folder))


def test_a_video_encoder_whose_frames_make_no_tubelet_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="num_frames 1 is less than tubelet_size 2"):
        load(str(write_backbone(tmp_path, "videomae", num_frames=1)))


def test_old_and_new_names_of_videomaes_biases_give_the_same_parameters(tmp_path: Path) -> None:
    old = golden_weights(golden("videomae")[0])
    assert any(name.endswith("q_bias") for name in old)
    new = {
        f"videomae.{name}".replace("q_bias", "query.bias").replace("v_bias", "value.bias"): tensor
        for name, tensor in old.items()
    }
    first = load(str(write_backbone(tmp_path / "old", "videomae"))).params
    second = load(str(write_backbone(tmp_path / "new", "videomae", new))).params
    place = ("transformer", "block_1", "attention", "query", "dense", "bias")
    for key in place:
        first, second = first[key], second[key]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, old["encoder.layer.1.attention.attention.q_bias"])


@pytest.mark.parametrize("name", ["bit", "clip", "deit", "siglip", "vit", "videomae"])
def test_pixels_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    tensors, metadata = golden("image/pixels")
    (tmp_path / "preprocessor_config.json").write_text(metadata[name])
    made = read_image_preprocessor(tmp_path)(Image.fromarray(tensors["picture"]))
    np.testing.assert_allclose(made, tensors[name], atol=1e-4)


def test_weights_of_antialiased_positions_add_up_to_one_and_repeat_what_is_as_large() -> None:
    for target in (1, 3, 7, 20):
        np.testing.assert_allclose(antialiased_matrix(7, target).sum(axis=1), np.ones(target), rtol=1e-6)
    np.testing.assert_allclose(antialiased_matrix(7, 7), np.eye(7), atol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frames": 257}, "frames is 257: it must be from 1 to 256"),
        ({"frames": -1}, "frames is -1"),
        ({"frame_pooling": "attention"}, "frame_pooling 'attention' is unknown: use one of mean, max"),
        ({"kind": "image", "frames": 8}, "`frames` and `frame_pooling` are for video; .* kind 'image'"),
        ({"kind": "image", "frame_pooling": "max"}, "are for video"),
        ({"pooling": "last"}, "pooling 'last' is for text"),
        ({"template": "{title}"}, "`template` is for text"),
    ],
)
def test_impossible_video_modalities_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModalityConfig(**({"kind": "video", "backbone": "x", "column": "clip"} | values))
