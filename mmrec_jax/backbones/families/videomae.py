"""VideoMAE (arXiv 2203.12602): ViT on tubelets of several frames, with fixed sinusoid positions and no class token.

Hidden state 0 is tubelets with positions; state k is what block k gives. Where config.json sets `use_mean_pooling`
(the fine-tuned checkpoints) there is no final normalisation, and state `depth` is transformers' last_hidden_state;
else `final_norm` applies it. "mean" is the only pooling. Frames and sizes are those of config.json: the positions
are laid out for them.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from mmrec_jax.backbones.families.vit import BLOCK, IGNORED, size, sizes_of
from mmrec_jax.backbones.family import (
    Encoder,
    Family,
    block_weights,
    check_heads,
    integer,
    norm_weights,
    pair,
)
from mmrec_jax.backbones.patches import flat_patches
from mmrec_jax.backbones.transformer import BlockMethod, Transformer, TransformerConfig, make_norm
from mmrec_jax.backbones.weights import Weight, WeightMap
from mmrec_jax.errors import BackboneError

DEFAULTS = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
OLD_NAMES = {
    r"attention\.attention\.q_bias$": "attention.attention.query.bias",
    r"attention\.attention\.v_bias$": "attention.attention.value.bias",
}
MORE_IGNORED = {
    r"encoder_to_decoder\.weight": "to the decoder of pre-training",
    r"mask_token": "stands for masked tubelets in pre-training only",
    r"position_embeddings": "a constant: the decoder's sinusoids",
    r"fc_norm\..*": "of the head of a task",
}


class VideoTransformer(nn.Module):
    """Frames to hidden states."""

    config: TransformerConfig
    tubelet: int
    patch: tuple[int, int]
    size: tuple[int, int]
    frames: int
    last_norm: bool
    method: BlockMethod | None = None

    def setup(self) -> None:
        self.projection = nn.Dense(self.config.width)
        self.transformer = Transformer(self.config, self.method)
        if self.last_norm:
            self.norm = make_norm(self.config)

    def __call__(
        self, pixels: Float[Array, "batch frame height width channel"]
    ) -> tuple[Float[Array, "batch token width"], ...]:
        if pixels.shape[1:4] != (self.frames, *self.size):
            raise ValueError(
                f"{pixels.shape[1]} frames of {pixels.shape[2]} x {pixels.shape[3]} pixels, but the encoder has "
                f"positions for {self.frames} of {self.size[0]} x {self.size[1]}"
            )
        tokens = self.projection(tubelets(pixels, self.tubelet, self.patch))
        states = self.transformer(tokens + sinusoids(tokens.shape[1], tokens.shape[2]))
        if self.is_initializing():
            self.final_norm(states[-1])
        return states

    def final_norm(self, state: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        """transformers' last_hidden_state of the last hidden state."""
        return self.norm(state) if self.last_norm else jnp.asarray(state)


def tubelets(
    pixels: Float[Array, "batch frame height width channel"], frames: int, patch: tuple[int, int]
) -> Float[Array, "batch token feature"]:
    """Blocks of `frames` x patch as vectors, in the order of time, row and column; a rest of frames is left out."""
    batch, count, height, width, channels = pixels.shape
    blocks = count // frames
    # The frames of a block become channels of one image, so that a patch of it is a tubelet.
    stacked = pixels[:, : blocks * frames].reshape(batch * blocks, frames, height, width, channels)
    stacked = jnp.moveaxis(stacked, 1, 3).reshape(batch * blocks, height, width, frames * channels)
    tokens, _ = flat_patches(stacked, patch)
    return tokens.reshape(batch, -1, tokens.shape[-1])


def tubelet_kernel(tensor: np.ndarray) -> np.ndarray:
    """A convolution's [out, channel, frame, height, width] as [height * width * frame * channel, out]."""
    return np.ascontiguousarray(tensor.transpose(3, 4, 2, 1, 0).reshape(-1, tensor.shape[0]))


def sinusoids(tokens: int, width: int) -> Float[np.ndarray, "token width"]:
    """Fixed positions (arXiv 1706.03762, section 3.5), sine and cosine alternating."""
    angle = np.arange(tokens)[:, None] / 10_000 ** (2 * (np.arange(width) // 2) / width)
    return np.where(np.arange(width) % 2, np.cos(angle), np.sin(angle)).astype(np.float32)


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A VideoMAE encoder from config.json."""
    biases = {"qkv_bias": config.get("qv_bias", config.get("qkv_bias", True))}
    sizes = sizes_of({**config, **biases}, **DEFAULTS)
    sizes = check_heads(dataclasses.replace(sizes, biased=sizes.biased - {"key"}))
    module = VideoTransformer(
        sizes,
        tubelet=integer(config, "tubelet_size", 2),
        patch=pair(config, "patch_size", 16),
        size=pair(config, "image_size", 224),
        frames=integer(config, "num_frames", 16),
        last_norm=not config.get("use_mean_pooling", True),
        method=method,
    )
    if module.frames < module.tubelet:
        raise BackboneError(f"config.json: num_frames {module.frames} is less than tubelet_size {module.tubelet}")
    weights = [
        Weight("projection/kernel", "embeddings.patch_embeddings.projection.weight", tubelet_kernel),
        Weight("projection/bias", "embeddings.patch_embeddings.projection.bias"),
        *block_weights(sizes, "encoder.layer.{layer}.", BLOCK),
        *(norm_weights(sizes, "norm", "layernorm") if module.last_norm else []),
    ]
    example = jnp.zeros((1, module.frames, *module.size, integer(config, "num_channels", 3)), jnp.float32)
    return Encoder(
        module,
        sizes,
        WeightMap(tuple(weights), IGNORED | MORE_IGNORED, "videomae.", OLD_NAMES),
        example,
        class_tokens=0,
    )


FORM = {"num_frames": 16, "tubelet_size": 2}
PRESETS = {
    "videomae-small-finetuned-kinetics": size("videomae", 384, 12, 6, 16, 224, **FORM),
    "videomae-base": size("videomae", 768, 12, 12, 16, 224, **FORM, use_mean_pooling=False),
    "videomae-base-finetuned-kinetics": size("videomae", 768, 12, 12, 16, 224, **FORM),
    "videomae-large": size("videomae", 1024, 24, 16, 16, 224, **FORM, use_mean_pooling=False),
    "videomae-large-finetuned-kinetics": size("videomae", 1024, 24, 16, 16, 224, **FORM),
    "videomae-huge-finetuned-kinetics": size("videomae", 1280, 32, 16, 16, 224, **FORM),
}
FAMILIES = (Family("videomae", "video", build, PRESETS),)
