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
IGNORED = {
    r"pooler\..*": "a head on the class token; hidden states are taken before it",
    r"classifier\..*": "head of a task",
    r"decoder\..*": "head of masked image modelling",
    r"embeddings\.mask_token": "stands for masked patches in pre-training only",
}


class VisionTransformer(nn.Module):
    """Pixels to hidden states; the first token is the class token."""

    config: TransformerConfig
    patch: tuple[int, int]
    grid: tuple[int, int]
    method: BlockMethod | None = None

    def setup(self) -> None:
        self.embeddings = PatchEmbedding(self.config.width, self.patch, self.grid)
        self.transformer = Transformer(self.config, self.method)
        self.norm = make_norm(self.config)

    def __call__(
        self, pixels: Float[Array, "batch height width channel"]
    ) -> tuple[Float[Array, "batch token feature"], ...]:
        states = self.transformer(self.embeddings(pixels))
        if self.is_initializing():
            self.norm(states[-1])
        return states

    def final_norm(self, state: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        """transformers' last_hidden_state of the last hidden state."""
        return self.norm(state)


def patch_kernel(tensor: np.ndarray) -> np.ndarray:
    """A convolution's [out, channel, height, width] as [height * width * channel, out], for flat patches."""
    return np.ascontiguousarray(tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0]))


def vision_encoder(
    config: dict, sizes: TransformerConfig, blocks: list[Weight], prefix: str, method: BlockMethod | None
) -> Encoder:
    """A ViT-like encoder: the family says the core's sizes and the weights of the blocks."""
    check_heads(sizes)
    patch, image = pair(config, "patch_size", 16), pair(config, "image_size", 224)
    grid = (image[0] // patch[0], image[1] // patch[1])
    weights = [
        Weight("embeddings/cls_token", "embeddings.cls_token"),
        Weight("embeddings/positions", "embeddings.position_embeddings"),
        Weight("embeddings/projection/kernel", "embeddings.patch_embeddings.projection.weight", patch_kernel),
        Weight("embeddings/projection/bias", "embeddings.patch_embeddings.projection.bias"),
        *blocks,
        *layer_norm("norm", "layernorm"),
    ]
    module = VisionTransformer(sizes, patch, grid, method)
    example = jnp.zeros((1, *patch, integer(config, "num_channels", 3)), jnp.float32)
    return Encoder(module, sizes, WeightMap(tuple(weights), IGNORED, prefix), example)


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A ViT encoder from config.json."""
    sizes = TransformerConfig(
        width=integer(config, "hidden_size"),
        depth=integer(config, "num_hidden_layers"),
        heads=integer(config, "num_attention_heads"),
        hidden=integer(config, "intermediate_size"),
        activation=activation(config, "gelu"),
        norm="pre",
        norm_epsilon=float(config.get("layer_norm_eps", 1e-12)),
        biased=biased_projections(config),
    )
    return vision_encoder(config, sizes, block_weights(sizes, "encoder.layer.{layer}.", BLOCK), "vit.", method)


FAMILIES = (Family("vit", "image", build),)
