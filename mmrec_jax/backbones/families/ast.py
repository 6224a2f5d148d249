"""AST, the Audio Spectrogram Transformer (arXiv 2104.01778): overlapping patches of a log-mel spectrogram.

The first two tokens are a class and a distillation token, as in DeiT; "cls" pooling is their mean, as in
transformers' pooler. Hidden state 0 is tokens with positions added; the last one comes before the final normalisation,
as in transformers. Every recording fills the same number of frames, and the padding takes part in attention, as in
the original; "mean" pooling counts both first tokens and the patches that begin inside the recording.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mmrec_jax.backbones.families.vit import BLOCK, MODULES
from mmrec_jax.backbones.family import (
    Encoder,
    Family,
    Sound,
    activation,
    biased_projections,
    block_weights,
    check_heads,
    integer,
    norm_weights,
    number,
)
from mmrec_jax.backbones.transformer import BlockMethod, Transformer, TransformerConfig, make_norm
from mmrec_jax.backbones.weights import Weight, WeightMap
from mmrec_jax.errors import BackboneError

IGNORED = {r"classifier\..*": "head of a task"}


class SpectrogramTransformer(nn.Module):
    """Log-mel spectrograms to hidden states.

    Attributes:
        config: the core's sizes.
        patch: frames and bins of a patch, which is square.
        strides: frames and bins from one patch to the next.
        frames: of a spectrogram.
        bins: of a spectrogram.
        method: applied at the blocks' places.
    """

    config: TransformerConfig
    patch: int
    strides: tuple[int, int]
    frames: int
    bins: int
    method: BlockMethod | None = None

    def setup(self) -> None:
        width, normal = self.config.width, nn.initializers.normal(0.02)
        size = (self.patch, self.patch)
        self.projection = nn.Conv(width, size, self.strides, padding="VALID", dtype=self.config.dtype)
        self.first = self.param("first", normal, (1, 2, width))
        self.positions = self.param("positions", normal, (1, 2 + int(np.prod(self.grid)), width))
        self.transformer = Transformer(self.config, self.method)
        self.norm = make_norm(self.config)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along time and along frequency."""
        return (self.frames - self.patch) // self.strides[0] + 1, (self.bins - self.patch) // self.strides[1] + 1

    def __call__(self, sound: Sound) -> tuple[Float[Array, "batch token feature"], ...]:
        if sound.values.shape[1:] != (self.frames, self.bins):
            raise ValueError(f"spectrograms {sound.values.shape[1:]}, but the encoder takes {(self.frames, self.bins)}")
        batch, width = len(sound.values), self.config.width
        patches = self.projection(sound.values[..., None].astype(self.config.dtype))
        # Patches are counted along time within each band of frequencies.
        patches = patches.swapaxes(1, 2).reshape(batch, -1, width)
        first = jnp.broadcast_to(self.first, (batch, 2, width))
        states = self.transformer(jnp.concatenate([first, patches], axis=1) + self.positions)
        if self.is_initializing():
            self.norm(states[-1])
        return states

    def token_mask(self, sound: Sound) -> Bool[Array, "batch token"]:
        """True for both first tokens, and for patches that begin inside the recording."""
        times, bands = self.grid
        inside = jnp.arange(times) * self.strides[0] < sound.lengths[:, None]
        first = jnp.ones((len(sound.lengths), 2), bool)
        return jnp.concatenate([first, jnp.tile(inside, (1, bands))], axis=1)

    def final_norm(self, state: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        """transformers' last_hidden_state of the last hidden state."""
        return self.norm(state)


def patch_kernel(tensor: np.ndarray) -> np.ndarray:
    """A convolution's [out, 1, frequency, time] as [time, frequency, 1, out]."""
    return np.ascontiguousarray(tensor.transpose(3, 2, 1, 0))


def two_tokens(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The class and the distillation token one after the other."""
    return np.concatenate([first, second], axis=1)


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """An AST encoder from config.json."""
    sizes = check_heads(
        TransformerConfig(
            width=integer(config, "hidden_size"),
            depth=integer(config, "num_hidden_layers"),
            heads=integer(config, "num_attention_heads"),
            hidden=integer(config, "intermediate_size"),
            activation=activation(config, "gelu"),
            norm="pre",
            norm_epsilon=number(config, "layer_norm_eps", 1e-12),
            biased=biased_projections(config),
        )
    )
    module = SpectrogramTransformer(
        sizes,
        patch=integer(config, "patch_size", 16),
        strides=(integer(config, "time_stride", 10), integer(config, "frequency_stride", 10)),
        frames=integer(config, "max_length", 1024),
        bins=integer(config, "num_mel_bins", 128),
        method=method,
    )
    if module.patch > min(module.frames, module.bins):
        raise BackboneError(
            f"config.json: patches of {module.patch} do not fit into {module.frames} frames of {module.bins} bins"
        )
    weights = [
        Weight("first", ("embeddings.cls_token", "embeddings.distillation_token"), two_tokens),
        Weight("positions", "embeddings.position_embeddings"),
        Weight("projection/kernel", "embeddings.patch_embeddings.projection.weight", patch_kernel),
        Weight("projection/bias", "embeddings.patch_embeddings.projection.bias"),
        *block_weights(sizes, "encoder.layer.{layer}.", BLOCK, modules=MODULES),
        *norm_weights(sizes, "norm", "layernorm"),
    ]
    return Encoder(
        module,
        sizes,
        WeightMap(tuple(weights), IGNORED, prefix="audio_spectrogram_transformer."),
        example=Sound(jnp.zeros((1, module.frames, module.bins)), jnp.asarray([module.frames])),
        class_tokens=2,
    )


PRESETS = {
    "ast-audioset": {
        "model_type": "audio-spectrogram-transformer",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "patch_size": 16,
        "time_stride": 10,
        "frequency_stride": 10,
        "max_length": 1024,
        "num_mel_bins": 128,
    }
}
FAMILIES = (Family("audio-spectrogram-transformer", "audio", build, PRESETS),)
