"""Small random BEiT-3 models of torchscale (PyPI, installed with --no-deps as fairscale is), and what they give."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import numpy as np
import torch

TINY = {
    "model_type": "beit3",
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "patch_size": 7,
    "image_size": 28,
    "vocab_size": 60,
    "max_position_embeddings": 18,
    "retrieval_heads": True,
}


def beit3_class() -> tuple[type, type]:
    """torchscale's EncoderConfig and BEiT3. Of timm, which pulls torchvision, they need one function for training."""
    stand_ins = ("timm", "timm.models", "timm.models.layers") if importlib.util.find_spec("timm") is None else ()
    for name in stand_ins:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].drop_path = None
    try:
        config = importlib.import_module("torchscale.architecture.config").EncoderConfig
        return config, importlib.import_module("torchscale.model.BEiT3").BEiT3
    finally:
        # Others ask whether timm is installed.
        for name in stand_ins:
            del sys.modules[name]


def make(config: dict, seed: int = 0) -> torch.nn.Module:
    """A model with our config.json's sizes, set as the official ones are; every parameter is far from its start."""
    encoder_config, beit3 = beit3_class()
    torch.manual_seed(seed)
    model = beit3(
        encoder_config(
            img_size=config["image_size"],
            patch_size=config["patch_size"],
            vocab_size=config["vocab_size"],
            multiway=True,
            normalize_output=True,
            no_output_layer=True,
            encoder_embed_dim=config["hidden_size"],
            encoder_attention_heads=config["num_attention_heads"],
            encoder_ffn_embed_dim=config["intermediate_size"],
            encoder_layers=config["num_hidden_layers"],
            max_source_positions=config["max_position_embeddings"] + 2,
        )
    ).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def checkpoint(model: torch.nn.Module, heads: bool = True, seed: int = 1) -> dict[str, torch.Tensor]:
    """The model's tensors under the official names, with random retrieval heads."""
    found = {f"beit3.{name}": tensor for name, tensor in model.state_dict().items()}
    if heads:
        width = model.args.encoder_embed_dim
        generator = torch.Generator().manual_seed(seed)
        found["vision_head.weight"] = torch.randn((width, width), generator=generator)
        found["language_head.weight"] = torch.randn((width, width), generator=generator)
        found["logit_scale"] = torch.tensor(3.5)
    return found


def outputs(
    model: torch.nn.Module,
    pixels: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    mask: np.ndarray | None = None,
) -> list[np.ndarray]:
    """What enters the first layer, what leaves each, and what the final normalisation gives."""
    states: list[np.ndarray] = []
    layers = model.encoder.layers
    hooks = [layers[0].register_forward_pre_hook(lambda module, inputs: states.append(inputs[0].numpy().copy()))]
    hooks += [layer.register_forward_hook(lambda m, i, made: states.append(made[0].numpy().copy())) for layer in layers]
    with torch.no_grad():
        made = model(
            visual_tokens=None if pixels is None else torch.tensor(pixels.transpose(0, 3, 1, 2)),
            textual_tokens=None if ids is None else torch.tensor(ids).long(),
            text_padding_position=None if mask is None else torch.tensor(~mask).long(),
        )
    for hook in hooks:
        hook.remove()
    return [*states, made["encoder_out"].numpy()]


def embedding(last: np.ndarray, head: torch.Tensor) -> np.ndarray:
    """The official retrieval model's unit vectors, of what the final normalisation gives."""
    return torch.nn.functional.normalize(torch.tensor(last[:, 0]) @ head.T, dim=-1).numpy()
