"""CLIP's image tower (arXiv 2103.00020): ViT whose tokens are normalised before the first block.

Hidden state 0 is patches and class token with positions, normalised; state k is what block k gives, and state
`depth` is transformers' last_hidden_state. The normalisation after it belongs to CLIP's head on the class token.
"""

from __future__ import annotations

import numpy as np

from mmrec_jax.backbones.families.vit import (
    VisionTransformer,
    patch_kernel,
    patches_of,
    pixel_example,
    size,
    sizes_of,
)
from mmrec_jax.backbones.family import Encoder, Family, block_weights, check_heads, norm_weights, subconfig
from mmrec_jax.backbones.patches import PatchEmbedding
from mmrec_jax.backbones.transformer import BlockMethod, TransformerConfig
from mmrec_jax.backbones.weights import Weight, WeightMap

TOWER = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
FORM = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
BLOCK = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "feed_forward_norm": "layer_norm2",
}
TWO_TOWERS = {
    r"text_model\..*": "the text tower",
    r"logit_scale": "temperature of the contrastive loss",
    r"embeddings\.position_ids": "a constant: 0, 1, 2, ...",
    r"classifier\..*": "head of a task",
}
IGNORED = TWO_TOWERS | {
    r"post_layernorm\..*": "a head on the class token; hidden states are taken before it",
    r"visual_projection\.weight": "maps to the space shared with texts, after the hidden states",
    r"text_projection\.weight": "of the text tower",
}


def add_axis(tensor: np.ndarray) -> np.ndarray:
    """A table [token, width] as [1, token, width], a vector [width] as [1, 1, width]."""
    return tensor.reshape(1, -1, tensor.shape[-1])


def tower_weights(sizes: TransformerConfig, embeddings: PatchEmbedding) -> list[Weight]:
    """The weights of the embeddings and blocks, under the names that CLIP and SigLIP share."""
    made = [
        Weight("embeddings/positions", "embeddings.position_embedding.weight", add_axis),
        Weight("embeddings/projection/kernel", "embeddings.patch_embedding.weight", patch_kernel),
        *block_weights(sizes, "encoder.layers.{layer}.", BLOCK),
    ]
    if embeddings.class_tokens:
        made.append(Weight("embeddings/cls_token", "embeddings.class_embedding", add_axis))
    if embeddings.bias:
        made.append(Weight("embeddings/projection/bias", "embeddings.patch_embedding.bias"))
    return made


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """The image tower from its own config.json."""
    sizes = check_heads(sizes_of(config, **TOWER, **FORM))
    embeddings = PatchEmbedding(sizes.width, *patches_of(config, patch=32), bias=False)
    weights = [*tower_weights(sizes, embeddings), *norm_weights(sizes, "pre_norm", "pre_layrnorm")]
    return Encoder(
        VisionTransformer(sizes, embeddings, first_norm=True, last_norm=False, method=method),
        sizes,
        WeightMap(tuple(weights), IGNORED, prefix="vision_model."),
        pixel_example(config, embeddings.patch),
    )


def build_from_pair(config: dict, method: BlockMethod | None) -> Encoder:
    """The image tower from the config.json of both towers."""
    # Older files say the tower's sizes in `vision_config_dict`, which goes before `vision_config`.
    key = "vision_config_dict" if config.get("vision_config_dict") else "vision_config"
    return build(subconfig(config, key), method)


PRESETS = {
    "clip-vit-base-patch32-image": size("clip_vision_model", 768, 12, 12, 32, 224, **FORM),
    "clip-vit-base-patch16-image": size("clip_vision_model", 768, 12, 12, 16, 224, **FORM),
    "clip-vit-large-patch14-image": size("clip_vision_model", 1024, 24, 16, 14, 224, **FORM),
    "clip-vit-large-patch14-336-image": size("clip_vision_model", 1024, 24, 16, 14, 336, **FORM),
}
FAMILIES = (
    Family("clip_vision_model", "image", build, PRESETS),
    Family("clip", "image", build_from_pair, tower="vision_model."),
)
