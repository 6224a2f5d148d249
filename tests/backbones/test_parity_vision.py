"""Live comparison of image and video families and their processors with transformers + torch."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmrec_jax.backbones.backbone import load
from mmrec_jax.backbones.image import read_image_preprocessor
from mmrec_jax.backbones.patches import interpolate_positions
from mmrec_jax.backbones.video import VideoPreprocessor

torch = pytest.importorskip("torch", reason="live parity needs the `parity` extra (torch)")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.parity,
    # Deprecations inside torch and transformers are not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

INTERPOLATING = {"vit", "deit", "clip_vision_model", "siglip_vision_model"}  # only when they are asked to


def random_config(family: str, seed: int):
    """A configuration with odd sizes, drawn from a seed."""
    rng = np.random.default_rng(seed)
    heads, patch = int(rng.integers(1, 5)), int(rng.integers(3, 8))
    sizes = {
        "hidden_size": heads * int(rng.integers(3, 10)),
        "num_attention_heads": heads,
        "num_hidden_layers": int(rng.integers(1, 5)),
        "hidden_act": str(rng.choice(["gelu", "gelu_pytorch_tanh", "quick_gelu", "relu"])),
        "layer_norm_eps": float(rng.choice([1e-12, 1e-6, 1e-3])),
        "patch_size": patch,
        "image_size": patch * int(rng.integers(2, 6)) + int(rng.integers(0, 2)),
        "intermediate_size": int(rng.integers(5, 50)),
    }
    if family == "dinov2_with_registers":
        del sizes["intermediate_size"]
        sizes |= {
            "mlp_ratio": int(rng.integers(1, 5)),
            "use_swiglu_ffn": bool(seed % 2),
            "num_register_tokens": int(rng.integers(1, 6)),
            "qkv_bias": bool(rng.integers(2)),
        }
    if family == "deit":
        sizes["qkv_bias"] = bool(rng.integers(2))
    if family == "siglip_vision_model":
        sizes["vision_use_head"] = bool(seed % 2)
    if family == "videomae":
        sizes |= {
            "tubelet_size": int(rng.integers(1, 4)),
            "num_frames": int(rng.integers(3, 8)),
            "use_mean_pooling": bool(seed % 2),
            "qv_bias": bool(rng.integers(2)),
        }
    return transformers.AutoConfig.for_model(family, **sizes)


def randomise(model) -> None:
    """Gives norms, biases and learned tokens values that a wrong mapping would show."""
    for parameter in model.parameters():
        if parameter.ndim == 1 or not parameter.any():
            parameter.data += 0.3 * torch.randn(parameter.shape)


def save(model, folder: Path) -> str:
    model.save_pretrained(folder)
    processor = {"image_processor_type": "ViTImageProcessor"}
    if model.config.model_type == "videomae":
        processor["size"] = model.config.image_size
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(folder)


def assert_equal_layers(backbone, model, pixels: np.ndarray) -> None:
    """Each layer within 1e-4 of its largest value, and the last one after its normalisation too."""
    more = {"interpolate_pos_encoding": True} if model.config.model_type in INTERPOLATING else {}
    with torch.no_grad():
        output = model(pixel_values=torch.tensor(np.moveaxis(pixels, -1, -3)), output_hidden_states=True, **more)
    states = backbone.hidden_states(jnp.asarray(pixels))
    last = backbone.model.apply({"params": backbone.params}, states[-1], method="final_norm")
    for layer, (state, truth) in enumerate(
        zip([*states, last], [*output.hidden_states, output.last_hidden_state], strict=True)
    ):
        assert np.abs(np.asarray(state) - truth.numpy()).max() < 1e-4 * truth.abs().max(), f"layer {layer}"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["deit", "dinov2_with_registers", "clip_vision_model", "siglip_vision_model"])
def test_random_tiny_configurations_give_equal_layers(family: str, seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    config = random_config(family, seed)
    model = transformers.AutoModel.from_config(config).eval()
    randomise(model)
    backbone = load(save(model, tmp_path))
    patch, side = config.patch_size, config.image_size
    rng = np.random.default_rng(seed)
    for size in ((side, side), (patch * 3 + 1, patch * 5 + 2), (patch, patch * 7)):
        assert_equal_layers(backbone, model, rng.normal(size=(2, *size, 3)).astype(np.float32))


@pytest.mark.parametrize("seed", range(4))
def test_videomae_gives_equal_layers(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    config = random_config("videomae", seed)
    model = transformers.AutoModel.from_config(config).eval()
    randomise(model)
    backbone = load(save(model, tmp_path))
    side = (config.image_size, config.image_size)
    pixels = np.random.default_rng(seed).normal(size=(2, config.num_frames, *side, 3))
    assert_equal_layers(backbone, model, pixels.astype(np.float32))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_image_tower_of_a_whole_checkpoint_gives_equal_layers(family: str, tmp_path: Path) -> None:
    tiny = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 40}
    towers = {"text_config": {**tiny, "vocab_size": 60}, "vision_config": {**tiny, "image_size": 21, "patch_size": 7}}
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(family, **towers)).eval()
    randomise(model)
    backbone = load(save(model, tmp_path), kind="image")
    pixels = np.random.default_rng(0).normal(size=(2, 28, 16, 3)).astype(np.float32)
    assert_equal_layers(backbone, model.vision_model, pixels)


@pytest.mark.parametrize("target", [(16, 16), (37, 36), (50, 9), (1, 1)])
def test_positions_are_interpolated_with_antialiasing_as_torch_does(target: tuple[int, int]) -> None:
    positions = np.random.default_rng(0).normal(size=(1, 1 + 37 * 37, 5)).astype(np.float32)
    grid = torch.tensor(positions[:, 1:]).reshape(1, 37, 37, 5).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=target, mode="bicubic", align_corners=False, antialias=True)
    expected = resized.permute(0, 2, 3, 1).reshape(1, -1, 5).numpy()
    made = np.asarray(interpolate_positions(jnp.asarray(positions), (37, 37), target, antialias=True))
    # torch computes the weights in float32.
    np.testing.assert_allclose(made[:, 1:], expected, atol=1e-5 * np.abs(expected).max())


PROCESSORS = {
    "clip": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32},
    "clip_defaults": {"image_processor_type": "CLIPImageProcessor"},
    "clip_fast": {"image_processor_type": "CLIPImageProcessorFast", "size": 30, "crop_size": 24},
    "clip_old_name": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 30, "crop_size": 28, "resample": 3},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 30, "width": 20}},
    "siglip_defaults": {"image_processor_type": "SiglipImageProcessorFast"},
    "siglip_number": {"image_processor_type": "SiglipImageProcessor", "size": 30},
    "deit_defaults": {"image_processor_type": "DeiTImageProcessor"},
    "deit_old_name": {"feature_extractor_type": "DeiTFeatureExtractor", "size": 36, "crop_size": 32},
    "bit_fast": {"image_processor_type": "BitImageProcessorFast", "size": {"shortest_edge": 30}},
    "bit_number": {"image_processor_type": "BitImageProcessor", "size": 30, "do_center_crop": False},
    "vit_fast": {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 24, "width": 30}},
}
MODEL_TYPES = {"clip": "clip", "siglip": "siglip", "deit": "deit", "bit": "dinov2", "vit": "vit"}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": MODEL_TYPES[name.split("_")[0]]}))
    ours = read_image_preprocessor(tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    rng = np.random.default_rng(0)
    for width, height in ((50, 41), (31, 77), (64, 64), (20, 33)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"])[0].transpose(1, 2, 0)
        np.testing.assert_allclose(ours(image), expected, atol=1e-4, err_msg=f"{width} x {height}")


@pytest.mark.parametrize(
    "config",
    [
        {"image_processor_type": "VideoMAEImageProcessor"},
        {"feature_extractor_type": "VideoMAEFeatureExtractor", "size": 40, "crop_size": 30},
        {"image_processor_type": "VideoMAEImageProcessor", "size": {"shortest_edge": 30}, "do_center_crop": False},
    ],
)
def test_frames_equal_those_of_transformers(config: dict, tmp_path: Path) -> None:
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    ours = VideoPreprocessor(read_image_preprocessor(tmp_path), 3)
    theirs = VideoMAEImageProcessorPil(**{key: value for key, value in config.items() if not key.endswith("_type")})
    rng = np.random.default_rng(0)
    for width, height in ((50, 41), (31, 77)):
        video = rng.integers(0, 256, (3, height, width, 3), np.uint8)
        expected = np.asarray(theirs([list(video)], return_tensors="np")["pixel_values"])[0].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(ours(video), expected, atol=1e-4, err_msg=f"{width} x {height}")


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_processor_saved_with_others_in_one_file_is_found(kind: str, tmp_path: Path) -> None:
    nested = {f"{kind}_processor": {f"{kind}_processor_type": f"VideoMAE{kind.title()}Processor", "size": 40}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "X", **nested}))
    assert read_image_preprocessor(tmp_path).shortest_edge == 40
