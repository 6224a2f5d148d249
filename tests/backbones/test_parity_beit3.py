"""Live comparison with torchscale's BEiT3, and the converter on checkpoints that torch saves."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmrec_jax.backbones.backbone import load
from mmrec_jax.backbones.convert_beit3 import convert, main
from mmrec_jax.backbones.families.beit3 import ImageText, joined
from mmrec_jax.backbones.family import Tokens
from mmrec_jax.backbones.sentencepiece import xlm_roberta_tokenizer
from mmrec_jax.errors import BackboneError

torch = pytest.importorskip("torch", reason="live parity needs the `parity` extra (torch)")
pytest.importorskip("torchscale", reason="pip install --no-deps torchscale fairscale")
from tests.backbones.torchscale_beit3 import TINY, checkpoint, embedding, make, outputs  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    # Deprecations inside torch and torchscale are not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

TEXTS = [
    "a dog runs over wet grass",
    "two children near a red ball",
    "the dog and the ball",
    "\uff37\uff45\uff54 \ufb01eld 棚",
]


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model of a few sentences, with the normalisation that XLM-R's has."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="pip install sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 5), model_writer=model, vocab_size=50, hard_vocab_limit=False, minloglevel=2
    )
    path = tmp_path_factory.mktemp("spm") / "beit3.spm"
    path.write_bytes(model.getvalue())
    return path


def random_sizes(seed: int) -> dict:
    """Odd sizes drawn from a seed."""
    rng = np.random.default_rng(seed)
    heads, patch = int(rng.integers(1, 5)), int(rng.integers(3, 8))
    return {
        **TINY,
        "hidden_size": heads * int(rng.integers(3, 10)),
        "num_attention_heads": heads,
        "num_hidden_layers": int(rng.integers(1, 4)),
        "intermediate_size": int(rng.integers(5, 50)),
        "patch_size": patch,
        "image_size": patch * int(rng.integers(2, 5)),
        "max_position_embeddings": int(rng.integers(9, 20)),
        "retrieval_heads": bool(seed % 2),
    }


def save(config: dict, model, folder: Path) -> Path:
    """An official checkpoint's content: tensors under "model", and heads of pre-training where there are no others."""
    tensors = checkpoint(model, config["retrieval_heads"])
    if not config["retrieval_heads"]:
        tensors["mlm_head.weight"], tensors["mim_head.bias"] = torch.zeros(60, config["hidden_size"]), torch.zeros(8)
    torch.save({"model": tensors, "epoch": 3}, folder / "beit3.pth")
    return folder / "beit3.pth"


def assert_layers_equal(model, params, inputs, expected: list[np.ndarray], *split: int) -> None:
    """Each layer within 1e-4 of its largest value, and the last one after its normalisation too."""
    states = jax.jit(model.apply)({"params": params}, inputs)
    last = model.apply({"params": params}, states[-1], *split, method="final_norm")
    for layer, (state, truth) in enumerate(zip([*states, last], expected, strict=True)):
        assert np.abs(np.asarray(state) - truth).max() < 1e-4 * np.abs(truth).max(), f"layer {layer}"


@pytest.mark.parametrize("seed", range(4))
def test_converted_checkpoints_give_equal_layers_in_all_passes(seed: int, tmp_path: Path, spm: Path) -> None:
    config = random_sizes(seed)
    source = make(config, seed)
    written = convert(save(config, source, tmp_path), spm, tmp_path / "out", heads=config["num_attention_heads"])
    assert written.items() >= config.items()
    image, text = load(str(tmp_path / "out"), kind="image"), load(str(tmp_path / "out"), kind="text")
    model, params = joined(image, text)
    rng = np.random.default_rng(seed)
    side, length = config["image_size"], int(rng.integers(1, config["max_position_embeddings"] + 1))
    pixels = rng.normal(size=(3, side, side, 3)).astype(np.float32)
    mask = np.arange(length) < np.linspace(length, 1, 3).astype(int)[:, None]
    ids = np.where(mask, rng.integers(2, 60, mask.shape), 1)
    tokens, vision = Tokens(jnp.asarray(ids), jnp.asarray(mask)), 1 + (side // config["patch_size"]) ** 2
    assert_layers_equal(image.model, image.params, pixels, seen := outputs(source, pixels))
    assert_layers_equal(text.model, text.params, tokens, read := outputs(source, None, ids, mask))
    assert_layers_equal(
        model, params, ImageText(jnp.asarray(pixels), tokens), outputs(source, pixels, ids, mask), vision
    )
    if config["retrieval_heads"]:
        tensors = checkpoint(source)
        for inputs, last, head in ((pixels, seen[-1], "vision"), (tokens, read[-1], "language")):
            made = model.apply({"params": params}, inputs, method="embed")
            np.testing.assert_allclose(made, embedding(last, tensors[f"{head}_head.weight"]), atol=1e-5)


def test_other_image_sizes_get_the_positions_that_the_official_script_gives_them(tmp_path: Path, spm: Path) -> None:
    source = make(TINY)
    convert(save(TINY, source, tmp_path), spm, tmp_path / "out", image_size=42, heads=3)
    larger = make({**TINY, "image_size": 42})
    tensors = source.state_dict()
    table = tensors["encoder.embed_positions.A.weight"]
    grid = table[3:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False)
    tensors["encoder.embed_positions.A.weight"] = torch.cat([table[:3], grid.permute(0, 2, 3, 1).reshape(36, -1)])
    larger.load_state_dict(tensors)
    backbone = load(str(tmp_path / "out"), kind="image")
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 61, 3), np.uint8))
    pixels = backbone.preprocess(photo)[None]
    assert pixels.shape == (1, 42, 42, 3)
    assert_layers_equal(backbone.model, backbone.params, pixels, outputs(larger, pixels))


def test_tokens_equal_those_of_sentencepiece(spm: Path) -> None:
    import sentencepiece

    library, tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(spm)), xlm_roberta_tokenizer(spm)
    for text in [*TEXTS, "  two\tspaces　wide ½ ", "unknown: ЖЖ 🙂!", "", "x" * 40]:
        # fairseq: <s> 0, <pad> 1, </s> 2, <unk> 3, and every other piece one later than in the file.
        expected = [0, *(3 if piece == 0 else piece + 1 for piece in library.encode(text)), 2]
        assert tokenizer.encode(text).ids == expected, text


def test_the_command_converts_without_reading_more_than_tensors(tmp_path: Path, spm: Path) -> None:
    command = [sys.executable, "-m", "mmrec_jax.backbones.convert_beit3", "--tokenizer", str(spm), "--heads", "3"]
    saved = save(TINY, make(TINY), tmp_path)
    run = subprocess.run(
        [*command, "--checkpoint", str(saved), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "hidden_size 24" in run.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
    ]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["retrieval_heads"]


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "harm")


def test_a_checkpoint_that_runs_code_is_refused(tmp_path: Path, spm: Path, capsys: pytest.CaptureFixture) -> None:
    harm = tmp_path / "harm.txt"
    torch.save({"model": {**checkpoint(make(TINY)), "extra": Malicious(harm)}}, tmp_path / "bad.pth")
    arguments = ["--checkpoint", str(tmp_path / "bad.pth"), "--tokenizer", str(spm), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "cannot be read as a file of tensors alone" in capsys.readouterr().err
    assert not harm.exists()
    assert not (tmp_path / "out").exists()


def test_tensors_that_are_not_beit3s_are_all_named_before_anything_is_written(tmp_path: Path, spm: Path) -> None:
    tensors = checkpoint(make(TINY))
    tensors["beit3.encoder.layers.0.adapter.A.weight"] = torch.zeros(2)
    tensors["head.weight"] = torch.zeros(2)
    del tensors["beit3.encoder.layers.1.ffn.A.fc2.bias"]
    torch.save(tensors, tmp_path / "beit3.pth")
    with pytest.raises(BackboneError, match=r"adapter\.A\.weight.*fc2\.bias is missing.*head\.weight"):
        convert(tmp_path / "beit3.pth", spm, tmp_path / "out", heads=3)
    torch.save([torch.zeros(2)], tmp_path / "beit3.pth")
    with pytest.raises(BackboneError, match="holds no dictionary of tensors"):
        convert(tmp_path / "beit3.pth", spm, tmp_path / "out")
    with pytest.raises(BackboneError, match=r"beit4\.pth cannot be read"):
        convert(tmp_path / "beit4.pth", spm, tmp_path / "out")
    assert not (tmp_path / "out").exists()
