"""ViT (arXiv 2010.11929): a pre-norm image encoder with a class token and learned positions.

Hidden state 0 is patches and class token with positions added; state k is what block k gives. The final
normalisation comes after the last hidden state, as in transformers 5.23; `final_norm` applies it.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from mmrec_jax.backbones.family import (
    Encoder,
    Family,
    activation,
    biased_projections,
    block_weights,
    check_heads,
    integer,
    number,
    pair,
)
from mmrec_jax.backbones.patches import PatchEmbedding
from mmrec_jax.backbones.transformer import BlockMethod, Transformer, TransformerConfig, make_norm
from mmrec_jax.backbones.weights import Weight, WeightMap, layer_norm

BLOCK = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "up": "intermediate.dense",
    "down": "output.dense",
    "feed_forward_norm": "layernorm_after",
}
MODULES = {
    "query": "layers.{layer}.attention.q_proj",
    "key": "layers.{layer}.attention.k_proj",
    "value": "layers.{layer}.attention.v_proj",
    "attention_out": "layers.{layer}.attention.o_proj",
    "up": "layers.{layer}.mlp.fc1",
    "down": "layers.{layer}.mlp.fc2",
}
"""The modules of transformers (5.20 and later), which has other names than its files."""
IGNORED = {
    r"pooler\..*": "a head on the class token; hidden states are taken before it",
    r"classifier\..*": "head of a task",
    r"decoder\..*": "head of masked image modelling",
    r"embeddings\.mask_token": "stands for masked patches in pre-training only",
}


class VisionTransformer(nn.Module):
    """Pixels to hidden states.

    Attributes:
        config: sizes of the core.
        embeddings: pixels to tokens.
        first_norm: whether tokens are normalised before the first block.
        last_norm: whether `final_norm` normalises.
        method: applied at the blocks' places.
    """

    config: TransformerConfig
    embeddings: PatchEmbedding
    first_norm: bool = False
    last_norm: bool = True
    method: BlockMethod | None = None

    def setup(self) -> None:
        self.transformer = Transformer(self.config, self.method)
        if self.first_norm:
            self.pre_norm = make_norm(self.config)
        if self.last_norm:
            self.norm = make_norm(self.config)

    def __call__(
        self, pixels: Float[Array, "batch height width channel"]
    ) -> tuple[Float[Array, "batch token feature"], ...]:
        tokens = self.embeddings(pixels)
        states = self.transformer(self.pre_norm(tokens) if self.first_norm else tokens)
        if self.is_initializing():
            self.final_norm(states[-1])
        return states

    def final_norm(self, state: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        """transformers' last_hidden_state of the last hidden state."""
        return self.norm(state) if self.last_norm else jnp.asarray(state)


def patch_kernel(tensor: np.ndarray) -> np.ndarray:
    """A convolution's [out, channel, height, width] as [height * width * channel, out], for flat patches."""
    return np.ascontiguousarray(tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0]))


def vision_encoder(
    config: dict,
    sizes: TransformerConfig,
    blocks: list[Weight],
    prefix: str,
    method: BlockMethod | None,
    embeddings: PatchEmbedding | None = None,
) -> Encoder:
    """A ViT-like encoder: the family says the core's sizes and the weights of the blocks, and how it embeds."""
    check_heads(sizes)
    embeddings = embeddings or PatchEmbedding(sizes.width, *patches_of(config))
    weights = [
        *first_tokens(embeddings),
        Weight("embeddings/positions", "embeddings.position_embeddings"),
        Weight("embeddings/projection/kernel", "embeddings.patch_embeddings.projection.weight", patch_kernel),
        Weight("embeddings/projection/bias", "embeddings.patch_embeddings.projection.bias"),
        *blocks,
        *layer_norm("norm", "layernorm"),
    ]
    return Encoder(
        VisionTransformer(sizes, embeddings, method=method),
        sizes,
        WeightMap(tuple(weights), IGNORED, prefix),
        pixel_example(config, embeddings.patch),
        class_tokens=embeddings.class_tokens,
        registers=embeddings.registers,
    )


def patches_of(config: dict, patch: int = 16) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size of a patch, and rows and columns of patches in an image of config.json's size."""
    high, wide = pair(config, "patch_size", patch)
    height, width = pair(config, "image_size", 224)
    return (high, wide), (height // high, width // wide)


def pixel_example(config: dict, patch: tuple[int, int]) -> Float[Array, "1 height width channel"]:
    """An image of one patch."""
    return jnp.zeros((1, *patch, integer(config, "num_channels", 3)), jnp.float32)


def first_tokens(embeddings: PatchEmbedding) -> list[Weight]:
    """The class token, DeiT's distillation token, and the registers."""
    names = ("embeddings.cls_token", "embeddings.distillation_token")[: embeddings.class_tokens]
    made = [Weight("embeddings/cls_token", names, lambda *tokens: np.concatenate(tokens, axis=1))]
    if embeddings.registers:
        made.append(Weight("embeddings/registers", "embeddings.register_tokens"))
    return made


def sizes_of(config: dict, **defaults) -> TransformerConfig:
    """The core's sizes under the names that most vision encoders use; `defaults` are those of config.json."""
    config = {**defaults, **{key: value for key, value in config.items() if value is not None}}
    return TransformerConfig(
        width=integer(config, "hidden_size"),
        depth=integer(config, "num_hidden_layers"),
        heads=integer(config, "num_attention_heads"),
        hidden=integer(config, "intermediate_size"),
        activation=activation(config, "gelu"),
        norm="pre",
        norm_epsilon=number(config, "layer_norm_eps", 1e-12),
        biased=biased_projections(config),
    )


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A ViT encoder from config.json."""
    sizes = sizes_of(config)
    blocks = block_weights(sizes, "encoder.layer.{layer}.", BLOCK, modules=MODULES)
    return vision_encoder(config, sizes, blocks, "vit.", method)


def size(model_type: str, width: int, depth: int, heads: int, patch: int, image: int, **more) -> dict:
    """config.json of a published size; the feed-forward has four times the width unless `more` says otherwise."""
    return {
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "patch_size": patch,
        "image_size": image,
        **more,
    }


PRESETS = {
    "vit-base-patch16-224": size("vit", 768, 12, 12, 16, 224),
    "vit-base-patch16-384": size("vit", 768, 12, 12, 16, 384),
    "vit-base-patch32-384": size("vit", 768, 12, 12, 32, 384),
    "vit-large-patch16-224": size("vit", 1024, 24, 16, 16, 224),
    "vit-large-patch32-384": size("vit", 1024, 24, 16, 32, 384),
    "vit-huge-patch14-224-in21k": size("vit", 1280, 32, 16, 14, 224),
}
FAMILIES = (Family("vit", "image", build, PRESETS),)
