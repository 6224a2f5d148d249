"""DeiT (arXiv 2012.12877), distilled: ViT with a distillation token after the class token.

Hidden states as in ViT: state `depth` comes before the final normalisation. "cls" pooling is the mean of the two
tokens, as the distilled models average their two heads.
"""

from __future__ import annotations

from mmrec_jax.backbones.families.vit import BLOCK, MODULES, patches_of, size, sizes_of, vision_encoder
from mmrec_jax.backbones.family import Encoder, Family, block_weights
from mmrec_jax.backbones.patches import PatchEmbedding
from mmrec_jax.backbones.transformer import BlockMethod


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A DeiT encoder from config.json."""
    sizes = sizes_of(config)
    blocks = block_weights(sizes, "encoder.layer.{layer}.", BLOCK, modules=MODULES)
    embeddings = PatchEmbedding(sizes.width, *patches_of(config), class_tokens=2)
    return vision_encoder(config, sizes, blocks, "deit.", method, embeddings)


PRESETS = {
    "deit-tiny-distilled-patch16-224": size("deit", 192, 12, 3, 16, 224),
    "deit-small-distilled-patch16-224": size("deit", 384, 12, 6, 16, 224),
    "deit-base-distilled-patch16-224": size("deit", 768, 12, 12, 16, 224),
    "deit-base-distilled-patch16-384": size("deit", 768, 12, 12, 16, 384),
}
FAMILIES = (Family("deit", "image", build, PRESETS),)
