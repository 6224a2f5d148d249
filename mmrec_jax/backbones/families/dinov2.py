"""DINOv2 (arXiv 2304.07193): ViT with layer scale; the giant size has a SwiGLU feed-forward.

Hidden states as in ViT: state `depth` comes before the final normalisation. DINOv2 with registers
(arXiv 2309.16588) has learned tokens without positions between the class token and the patches.
"""

from __future__ import annotations

import numpy as np

from mmrec_jax.backbones.families.vit import patches_of, vision_encoder
from mmrec_jax.backbones.family import Encoder, Family, activation, biased_projections, block_weights, integer
from mmrec_jax.backbones.patches import PatchEmbedding
from mmrec_jax.backbones.transformer import BlockMethod, TransformerConfig
from mmrec_jax.backbones.weights import Weight, dense

SOURCE = "encoder.layer.{layer}."
ATTENTION = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "norm1",
    "attention_scale": "layer_scale1.lambda1",
    "feed_forward_norm": "norm2",
    "feed_forward_scale": "layer_scale2.lambda1",
}
PLAIN = {"up": "mlp.fc1", "down": "mlp.fc2"}
MODULES = {
    "query": SOURCE + "attention.q_proj",
    "key": SOURCE + "attention.k_proj",
    "value": SOURCE + "attention.v_proj",
    "attention_out": SOURCE + "attention.o_proj",
}
"""The modules of transformers (5.20 and later) whose names are others than those in its files."""
GATED_MODULES = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}


def first_half(tensor: np.ndarray) -> np.ndarray:
    """The gate's rows of the projection that holds gate and up one after the other."""
    return np.ascontiguousarray(tensor[: len(tensor) // 2].T)


def second_half(tensor: np.ndarray) -> np.ndarray:
    """The rows of the projection that the gate multiplies."""
    return np.ascontiguousarray(tensor[len(tensor) // 2 :].T)


def gated_weights(depth: int) -> list[Weight]:
    """The SwiGLU feed-forwards of all blocks."""
    made = []
    for layer in range(depth):
        ours, theirs = f"transformer/block_{layer}/feed_forward", SOURCE.format(layer=layer)
        modules = {place: theirs + name for place, name in GATED_MODULES.items()}
        for place, half in (("gate", first_half), ("up", second_half)):
            made.append(Weight(f"{ours}/{place}/dense/kernel", f"{theirs}mlp.weights_in.weight", half, modules[place]))
            made.append(Weight(f"{ours}/{place}/dense/bias", f"{theirs}mlp.weights_in.bias", half))
        made += dense(f"{ours}/down/dense", f"{theirs}mlp.weights_out", module=modules["down"])
    return made


def build(config: dict, method: BlockMethod | None, prefix: str, patch: int, registers: int = 0) -> Encoder:
    """An encoder from config.json, which may leave the size of a patch out."""
    width = integer(config, "hidden_size")
    hidden = int(width * float(config.get("mlp_ratio", 4)))
    gated = bool(config.get("use_swiglu_ffn", False))
    sizes = TransformerConfig(
        width=width,
        depth=integer(config, "num_hidden_layers"),
        heads=integer(config, "num_attention_heads"),
        # SwiGLU has two thirds of the features, rounded up to a multiple of 8.
        hidden=(int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden,
        activation="silu" if gated else activation(config, "gelu"),
        norm="pre",
        norm_epsilon=float(config.get("layer_norm_eps", 1e-6)),
        biased=biased_projections(config),
        layer_scale=True,
        gated=gated,
    )
    names = ATTENTION if gated else {**ATTENTION, **PLAIN}
    blocks = block_weights(sizes, SOURCE, names, modules=MODULES) + (gated_weights(sizes.depth) if gated else [])
    embeddings = PatchEmbedding(width, *patches_of(config, patch), registers=registers, antialias=registers > 0)
    return vision_encoder(config, sizes, blocks, prefix, method, embeddings)


def build_plain(config: dict, method: BlockMethod | None) -> Encoder:
    """A DINOv2 encoder from config.json."""
    return build(config, method, "dinov2.", patch=14)


def build_with_registers(config: dict, method: BlockMethod | None) -> Encoder:
    """A DINOv2 encoder with registers from config.json."""
    registers = integer(config, "num_register_tokens", 4, least=0)
    return build(config, method, "dinov2_with_registers.", patch=16, registers=registers)


def _sizes(model_type: str, **more) -> dict[str, dict]:
    """The four published sizes; their feed-forward follows from `mlp_ratio`."""
    common = {"model_type": model_type, "patch_size": 14, "image_size": 518, "mlp_ratio": 4, **more}
    return {
        name: {**common, "hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads} | swiglu
        for name, width, depth, heads, swiglu in (
            ("small", 384, 12, 6, {}),
            ("base", 768, 12, 12, {}),
            ("large", 1024, 24, 16, {}),
            ("giant", 1536, 40, 24, {"use_swiglu_ffn": True}),
        )
    }


PLAIN_SIZES = {f"dinov2-{name}": config for name, config in _sizes("dinov2").items()}
REGISTER_SIZES = {
    f"dinov2-with-registers-{name}": config
    for name, config in _sizes("dinov2_with_registers", num_register_tokens=4).items()
}
FAMILIES = (
    Family("dinov2", "image", build_plain, PLAIN_SIZES),
    Family("dinov2_with_registers", "image", build_with_registers, REGISTER_SIZES),
)
