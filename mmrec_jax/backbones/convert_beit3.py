"""Turns an official BEiT-3 checkpoint into a folder that `load` reads. Run once, offline; needs torch.

    pip install "mmrec_jax[parity]"
    python -m mmrec_jax.backbones.convert_beit3 \
        --checkpoint beit3_base_itc_patch16_224.pth --tokenizer beit3.spm --out models/beit3-base-itc

The .pth is read with torch's `weights_only`, which builds tensors and plain containers and nothing else. Names stay as
they are; every name and shape is checked before anything is written. The heads of masked modelling and the mask token
are left out. The checkpoints of pre-training, of image-text contrast (`itc`) and of retrieval fit; those of other tasks
have heads of their own, and some no final normalisation, and are refused.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from mmrec_jax.backbones.families.beit3 import LETTERS, OFFSET, PREFIX, UNUSED, build
from mmrec_jax.backbones.sentencepiece import xlm_roberta_tokenizer
from mmrec_jax.backbones.weights import WEIGHTS_FILE, map_weights
from mmrec_jax.errors import BackboneError, UserError

HEAD_WIDTH = 64  # of both published sizes


def convert(checkpoint: Path, tokenizer: Path, out: Path, *, image_size: int = 0, heads: int = 0) -> dict:
    """Writes weights, config.json, preprocessor_config.json and tokenizer.json.

    Args:
        checkpoint: the .pth file.
        tokenizer: beit3.spm, or a tokenizer.json made of it.
        out: the folder; made, must be empty.
        image_size: side of the images in pixels; 0 is that of the checkpoint's positions, others interpolate them.
        heads: attention heads; 0 is one for every 64 features.

    Returns:
        What stands in config.json.

    Raises:
        BackboneError: torch is not installed, a file cannot be read safely, or the tensors are not BEiT-3's.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BackboneError(f"{out} is there already and not an empty folder: name another")
    tensors = read_checkpoint(checkpoint)
    config = config_of(tensors, heads, str(checkpoint))
    for branch in LETTERS:
        encoder = build(config, None, branch)
        expected = jax.eval_shape(encoder.module.init, jax.random.key(0), encoder.example)["params"]
        map_weights(tensors, encoder.weight_map, expected, str(checkpoint), lambda path, made: jnp.zeros(()))
    side = image_size or config["image_size"]
    if side % config["patch_size"]:
        raise BackboneError(f"an image size of {side} is no multiple of the patch size {config['patch_size']}")
    tokens = read_tokenizer(tokenizer, config["vocab_size"])
    out.mkdir(parents=True, exist_ok=True)
    tokens.save(str(out / "tokenizer.json"))
    unused = re.compile("|".join(UNUSED))
    kept = {name: tensor for name, tensor in tensors.items() if not unused.fullmatch(name.removeprefix(PREFIX))}
    save_file(kept, out / WEIGHTS_FILE)
    write_json(out / "preprocessor_config.json", preprocessing(side))
    # Last: without it, a folder that was not finished is no backbone.
    write_json(out / "config.json", config)
    return config


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The model's tensors of a .pth file, as float32.

    Raises:
        BackboneError: torch is not installed, or the file holds anything but tensors in plain containers.
    """
    try:
        # Not an import statement: nothing at run time may need torch, and this script alone uses it.
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise BackboneError('reading a .pth file needs torch: pip install "mmrec_jax[parity]"') from error
    read_only_tensors = partial(torch.load, map_location="cpu", weights_only=True)
    try:
        read = read_only_tensors(path)
    except Exception as error:  # whatever the reader meets in a file that is broken or not only tensors
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"{path} cannot be read as a file of tensors alone: {reason}") from error
    model = read.get("model", read) if isinstance(read, dict) else read
    if not isinstance(model, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in model.values()):
        raise BackboneError(f"{path} holds no dictionary of tensors, under 'model' or by itself")
    return {str(name): tensor.to(torch.float32).contiguous().numpy() for name, tensor in model.items()}


def read_tokenizer(path: Path, vocabulary: int) -> Tokenizer:
    """The fast tokenizer of a sentencepiece file or a tokenizer.json.

    Raises:
        BackboneError: it cannot be read, or knows more tokens than the checkpoint has embeddings for.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.suffix == ".json" else xlm_roberta_tokenizer(path)
    except BackboneError:
        raise
    except Exception as error:  # the library raises plain Exception
        raise BackboneError(f"{path} cannot be read as a tokenizer: {error}") from error
    if (known := tokenizer.get_vocab_size()) > vocabulary:
        raise BackboneError(f"{path} has {known} tokens, but the checkpoint has embeddings for {vocabulary}")
    return tokenizer


def config_of(tensors: dict[str, np.ndarray], heads: int, where: str) -> dict:
    """The config.json that tensors of these names and shapes ask for.

    Raises:
        BackboneError: one that the sizes follow from is missing, or the sizes do not fit together.
    """
    try:
        vocabulary, width = tensors[PREFIX + "text_embed.weight"].shape
        patch = tensors[PREFIX + "vision_embed.proj.weight"].shape[-1]
        cells = len(tensors[PREFIX + "encoder.embed_positions.A.weight"]) - OFFSET - 1
        positions = len(tensors[PREFIX + "encoder.embed_positions.B.weight"]) - OFFSET
        hidden = len(tensors[PREFIX + "encoder.layers.0.ffn.A.fc1.weight"])
    except (KeyError, ValueError, IndexError) as error:
        raise BackboneError(f"{where} is no BEiT-3 checkpoint: {error}") from error
    layers = {found[1] for name in tensors if (found := re.match(r"beit3\.encoder\.layers\.(\d+)\.", name))}
    return {
        "model_type": "beit3",
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads or max(1, width // HEAD_WIDTH),
        "intermediate_size": hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "patch_size": patch,
        "image_size": round(max(cells, 1) ** 0.5) * patch,
        "num_channels": 3,
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "retrieval_heads": "logit_scale" in tensors,
    }


def preprocessing(side: int) -> dict:
    """The official evaluation's: a square by bicubic resizing, values from -1 to 1."""
    return {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def write_json(path: Path, value: dict) -> None:
    """Writes a JSON file for people to read."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    parser = argparse.ArgumentParser(description="Converts an official BEiT-3 checkpoint for mmrec_jax.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the .pth file")
    parser.add_argument("--tokenizer", type=Path, required=True, help="beit3.spm, or a tokenizer.json made of it")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write, new or empty")
    parser.add_argument("--image-size", type=int, default=0, help="pixels a side; default: the checkpoint's")
    parser.add_argument("--heads", type=int, default=0, help="attention heads; default: one for 64 features")
    given = parser.parse_args(argv)
    try:
        config = convert(given.checkpoint, given.tokenizer, given.out, image_size=given.image_size, heads=given.heads)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: " + ", ".join(f"{key} {value}" for key, value in config.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
