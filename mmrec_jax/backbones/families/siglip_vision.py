"""SigLIP's image tower (arXiv 2303.15343): ViT without a class token.

Hidden state 0 is patches with positions; state k is what block k gives. The final normalisation comes after the
last hidden state; `final_norm` applies it. Without a class token, "mean" is the only pooling.
"""

from __future__ import annotations

from mmrec_jax.backbones.families.clip_vision import TOWER, TWO_TOWERS, tower_weights
from mmrec_jax.backbones.families.vit import VisionTransformer, patches_of, pixel_example, size, sizes_of
from mmrec_jax.backbones.family import Encoder, Family, check_heads, norm_weights, subconfig
from mmrec_jax.backbones.patches import PatchEmbedding
from mmrec_jax.backbones.transformer import BlockMethod
from mmrec_jax.backbones.weights import WeightMap

FORM = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
IGNORED = TWO_TOWERS | {
    r"head\..*": "attention pooling for the contrastive loss, after the hidden states",
    r"logit_bias": "bias of the contrastive loss",
}


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """The image tower from its own config.json."""
    sizes = check_heads(sizes_of(config, **TOWER, **FORM))
    embeddings = PatchEmbedding(sizes.width, *patches_of(config), class_tokens=0)
    weights = [*tower_weights(sizes, embeddings), *norm_weights(sizes, "norm", "post_layernorm")]
    return Encoder(
        VisionTransformer(sizes, embeddings, method=method),
        sizes,
        WeightMap(tuple(weights), IGNORED, prefix="vision_model."),
        pixel_example(config, embeddings.patch),
        class_tokens=0,
    )


def build_from_pair(config: dict, method: BlockMethod | None) -> Encoder:
    """The image tower from the config.json of both towers."""
    return build(subconfig(config, "vision_config"), method)


def _base(patch: int, image: int) -> dict:
    return size("siglip_vision_model", 768, 12, 12, patch, image, **FORM)


def _large(image: int) -> dict:
    return size("siglip_vision_model", 1024, 24, 16, 16, image, **FORM)


PRESETS = {
    "siglip-base-patch16-224-image": _base(16, 224),
    "siglip-base-patch16-256-image": _base(16, 256),
    "siglip-base-patch16-384-image": _base(16, 384),
    "siglip-base-patch16-512-image": _base(16, 512),
    "siglip-large-patch16-256-image": _large(256),
    "siglip-large-patch16-384-image": _large(384),
    "siglip-so400m-patch14-384-image": size(
        "siglip_vision_model", 1152, 27, 16, 14, 384, **FORM, intermediate_size=4304
    ),
}
FAMILIES = (
    Family("siglip_vision_model", "image", build, PRESETS),
    Family("siglip", "image", build_from_pair, tower="vision_model."),
)
