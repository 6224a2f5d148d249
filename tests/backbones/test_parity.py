"""Live comparison with transformers + torch: random tiny configurations, real weights, tokens and pixels."""

from __future__ import annotations

import html
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmrec_jax.backbones.backbone import load
from mmrec_jax.backbones.family import Tokens
from mmrec_jax.backbones.image import read_image_preprocessor
from mmrec_jax.backbones.patches import interpolate_positions
from mmrec_jax.backbones.text import read_text_preprocessor
from tests.tiny_backbones import write_tokenizer

torch = pytest.importorskip("torch", reason="live parity needs the `parity` extra (torch)")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.parity,
    # Deprecations inside torch and transformers are not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]


def random_config(family: str, seed: int):
    """A configuration with odd sizes, drawn from a seed."""
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 5))
    sizes = {
        "hidden_size": heads * int(rng.integers(3, 10)),
        "num_attention_heads": heads,
        "num_hidden_layers": int(rng.integers(1, 5)),
        "hidden_act": str(rng.choice(["gelu", "gelu_new", "relu", "silu"])),
        "layer_norm_eps": float(rng.choice([1e-12, 1e-6, 1e-3])),
        "initializer_range": 0.3,
    }
    if family == "bert":
        more = {"vocab_size": 60, "max_position_embeddings": 33, "type_vocab_size": int(rng.integers(1, 4))}
        return transformers.BertConfig(**sizes, **more, intermediate_size=int(rng.integers(5, 50)))
    sizes |= {"patch_size": int(rng.integers(3, 8)), "qkv_bias": bool(rng.integers(2))}
    sizes["image_size"] = sizes["patch_size"] * int(rng.integers(2, 6)) + int(rng.integers(0, 2))
    if family == "vit":
        return transformers.ViTConfig(**sizes, intermediate_size=int(rng.integers(5, 50)))
    return transformers.Dinov2Config(**sizes, mlp_ratio=int(rng.integers(1, 5)), use_swiglu_ffn=bool(rng.integers(2)))


def save(model, folder: Path) -> str:
    """A model's folder with the preprocessing files that `load` wants."""
    model.save_pretrained(folder)
    if model.config.model_type == "bert":
        write_tokenizer(folder / "tokenizer.json")
    else:
        (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    return str(folder)


def expected_states(model, inputs: Tokens | np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    if isinstance(inputs, Tokens):
        named = {
            "input_ids": torch.tensor(np.asarray(inputs.ids)).long(),
            "attention_mask": torch.tensor(np.asarray(inputs.mask)).long(),
        }
    else:
        named = {"pixel_values": torch.tensor(inputs.transpose(0, 3, 1, 2))}
        if model.config.model_type == "vit":
            named["interpolate_pos_encoding"] = True
    with torch.no_grad():
        output = model(**named, output_hidden_states=True)
    return [state.numpy() for state in output.hidden_states], output.last_hidden_state.numpy()


def assert_equal_layers(backbone, model, inputs: Tokens | np.ndarray) -> None:
    """Each layer within 1e-4 of its largest value, and the last one after its normalisation too."""
    expected, last = expected_states(model, inputs)
    states = backbone.hidden_states(inputs if isinstance(inputs, Tokens) else jnp.asarray(inputs))
    assert len(states) == len(expected)
    final = backbone.model.apply({"params": backbone.params}, states[-1], method="final_norm")
    for layer, (state, truth) in enumerate(zip([*states, final], [*expected, last], strict=True)):
        assert np.abs(np.asarray(state) - truth).max() < 1e-4 * np.abs(truth).max(), f"layer {layer}"


def random_tokens(rng: np.random.Generator, vocabulary: int, length: int, rows: int = 3) -> Tokens:
    mask = np.arange(length) < np.linspace(length, 1, rows).astype(int)[:, None]
    return Tokens(jnp.asarray(np.where(mask, rng.integers(1, vocabulary, mask.shape), 0)), jnp.asarray(mask))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["bert", "vit", "dinov2"])
def test_random_tiny_configurations_give_equal_layers(family: str, seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    config = random_config(family, seed)
    model = transformers.AutoModel.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    backbone = load(save(model, tmp_path))
    rng = np.random.default_rng(seed)
    if family == "bert":
        for length in (1, 7, 33):
            assert_equal_layers(backbone, model, random_tokens(rng, 60, length))
        return
    patch, side = config.patch_size, config.image_size
    for size in ((side, side), (patch * 3 + 1, patch * 5 + 2), (patch, patch * 2)):
        assert_equal_layers(backbone, model, rng.normal(size=(2, *size, 3)).astype(np.float32))


@pytest.mark.shared
def test_minilm_gives_equal_tokens_and_layers(shared: Path) -> None:
    folder = shared / "weights" / "minilm-l6"
    backbone = load(str(folder), max_tokens=32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = (shared / "data" / "amazon-scientific" / "items.tsv").read_text().splitlines()[::700]
    texts = [html.unescape(row.split("\t")[1]).strip() for row in rows] + ["Ünïcödé 棚 🙂", "x " * 100]
    ids = backbone.preprocess(texts)
    made = tokenizer(texts, truncation=True, max_length=32, padding=True, return_tensors="np")
    mask = made["attention_mask"].astype(bool)
    for row, tokens in enumerate(ids):
        np.testing.assert_array_equal(tokens, made["input_ids"][row][mask[row]], err_msg=texts[row])
    assert_equal_layers(backbone, model, Tokens(jnp.asarray(made["input_ids"]), jnp.asarray(mask)))


@pytest.mark.shared
def test_dinov2_gives_equal_pixels_and_layers(shared: Path) -> None:
    folder = shared / "weights" / "dinov2-small"
    backbone = load(str(folder))
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    posters = sorted((shared / "data" / "movielens-small" / "posters").glob("*.jpg"))[::1800]
    images = [Image.open(path).convert("RGB") for path in posters]
    pixels = np.stack([backbone.preprocess(image) for image in images])
    expected = processor(images, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pixels, expected, atol=1e-5)
    assert_equal_layers(backbone, model, pixels)
    assert_equal_layers(backbone, model, pixels[:, :99, :203])


@pytest.mark.parametrize("target", [(16, 16), (37, 36), (50, 9), (1, 1)])
def test_positions_are_interpolated_as_torch_does(target: tuple[int, int]) -> None:
    positions = np.random.default_rng(0).normal(size=(1, 1 + 37 * 37, 5)).astype(np.float32)
    grid = torch.tensor(positions[:, 1:]).reshape(1, 37, 37, 5).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(grid, size=target, mode="bicubic", align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(1, -1, 5).numpy()
    made = np.asarray(interpolate_positions(jnp.asarray(positions), (37, 37), target))
    np.testing.assert_array_equal(made[:, :1], positions[:, :1])
    # torch computes the sample points in float32.
    np.testing.assert_allclose(made[:, 1:], expected, atol=1e-5 * np.abs(expected).max())


PROCESSORS = {
    "bit": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32},
    "bit_defaults": {"image_processor_type": "BitImageProcessor"},
    "bit_fast_name": {"image_processor_type": "BitImageProcessorFast", "size": {"shortest_edge": 30}},
    "bit_crop_larger": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 30},
        "crop_size": {"height": 45, "width": 33},
    },
    "vit": {"image_processor_type": "ViTImageProcessor"},
    "vit_number": {"image_processor_type": "ViTImageProcessor", "size": 30, "resample": 3},
    "vit_old_name": {"feature_extractor_type": "ViTFeatureExtractor", "size": 24, "image_mean": [0.1, 0.2, 0.3]},
    "vit_plain": {"image_processor_type": "ViTImageProcessor", "do_normalize": False, "size": 24},
    "vit_raw": {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "do_normalize": False, "size": 24},
    "vit_no_resize": {"image_processor_type": "ViTImageProcessor", "do_resize": False},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit" if "vit" in name else "dinov2"}))
    ours = read_image_preprocessor(tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    rng = np.random.default_rng(0)
    for width, height in ((50, 41), (31, 77), (64, 64), (20, 33)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        expected = np.asarray(theirs(image, return_tensors="np")["pixel_values"])[0].transpose(1, 2, 0)
        np.testing.assert_allclose(ours(image), expected, atol=1e-4, err_msg=f"{width} x {height}")


def test_tokens_equal_those_of_transformers(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    texts = ["a b", "Éclair, c!", "", "abc " * 20]
    ours = read_text_preprocessor(tmp_path, 9)(texts)
    for text, ids in zip(texts, ours, strict=True):
        assert ids.tolist() == theirs(text, truncation=True, max_length=9)["input_ids"]
