"""DINOv2 (arXiv 2304.07193): ViT with layer scale; the giant size has a SwiGLU feed-forward.

Hidden states as in ViT: state `depth` comes before the final normalisation.
"""

from __future__ import annotations

import numpy as np

from mmrec_jax.backbones.families.vit import vision_encoder
from mmrec_jax.backbones.family import Encoder, Family, activation, biased_projections, block_weights, integer
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
        ours, theirs = f"transformer/block_{layer}/feed_forward", SOURCE.format(layer=layer) + "mlp."
        for place, half in (("gate", first_half), ("up", second_half)):
            made.append(Weight(f"{ours}/{place}/dense/kernel", f"{theirs}weights_in.weight", half))
            made.append(Weight(f"{ours}/{place}/dense/bias", f"{theirs}weights_in.bias", half))
        made += dense(f"{ours}/down/dense", f"{theirs}weights_out")
    return made


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A DINOv2 encoder from config.json."""
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
    blocks = block_weights(sizes, SOURCE, names) + (gated_weights(sizes.depth) if gated else [])
    return vision_encoder({"patch_size": 14, **config}, sizes, blocks, "dinov2.", method)


FAMILIES = (Family("dinov2", "image", build),)
