"""Whisper's encoder (arXiv 2212.04356): two convolutions over a log-mel spectrogram, then a pre-norm transformer.

Hidden state 0 is what the convolutions give, with sinusoid positions (stored in the file) added; the last one comes
after the final normalisation, as in transformers: it is last_hidden_state. Every recording fills the encoder's window
of 30 s, and the silence takes part in attention, as in the original; "mean" pooling counts the tokens whose middle
frame touches the recording. There is no class token.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mmrec_jax.backbones.family import (
    Encoder,
    Family,
    Sound,
    activation,
    block_weights,
    check_heads,
    integer,
    norm_weights,
)
from mmrec_jax.backbones.transformer import (
    ACTIVATIONS,
    PROJECTIONS,
    BlockMethod,
    Transformer,
    TransformerConfig,
    make_norm,
)
from mmrec_jax.backbones.weights import Weight, WeightMap

BLOCK = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "up": "fc1",
    "down": "fc2",
    "feed_forward_norm": "final_layer_norm",
}
IGNORED = {
    r"decoder\..*": "writes text out of the encoder's states",
    r"proj_out\.weight": "head of the decoder",
    r"(projector|classifier)\..*|layer_weights": "head of a task",
}


class WhisperEncoder(nn.Module):
    """Log-mel spectrograms to hidden states, half as many as frames.

    Attributes:
        config: the core's sizes.
        bins: of a spectrogram.
        tokens: of every recording.
        method: applied at the blocks' places.
    """

    config: TransformerConfig
    bins: int
    tokens: int
    method: BlockMethod | None = None

    def setup(self) -> None:
        width, dtype = self.config.width, self.config.dtype
        self.conv_1 = nn.Conv(width, (3,), padding=1, dtype=dtype)
        self.conv_2 = nn.Conv(width, (3,), strides=2, padding=1, dtype=dtype)
        self.positions = self.param("positions", nn.initializers.normal(0.02), (self.tokens, width))
        self.transformer = Transformer(self.config, self.method)
        self.norm = make_norm(self.config)

    def __call__(self, sound: Sound) -> tuple[Float[Array, "batch token width"], ...]:
        if sound.values.shape[1:] != (2 * self.tokens, self.bins):
            raise ValueError(
                f"spectrograms {sound.values.shape[1:]}, but the encoder takes {(2 * self.tokens, self.bins)}"
            )
        x = ACTIVATIONS["gelu"](self.conv_1(sound.values.astype(self.config.dtype)))
        x = ACTIVATIONS["gelu"](self.conv_2(x))
        *states, last = self.transformer(x + self.positions)
        return (*states, self.norm(last))

    def token_mask(self, sound: Sound) -> Bool[Array, "batch token"]:
        """True for the tokens whose middle frame touches the recording."""
        return 2 * jnp.arange(self.tokens) < sound.lengths[:, None]

    def final_norm(self, state: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        """The last hidden state as it is: it has been normalised."""
        return jnp.asarray(state)


def conv_kernel(tensor: np.ndarray) -> np.ndarray:
    """A convolution's [out, in, time] as [time, in, out]."""
    return np.ascontiguousarray(tensor.transpose(2, 1, 0))


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A Whisper encoder from config.json."""
    sizes = check_heads(
        TransformerConfig(
            width=integer(config, "d_model"),
            depth=integer(config, "encoder_layers"),
            heads=integer(config, "encoder_attention_heads"),
            hidden=integer(config, "encoder_ffn_dim"),
            activation=activation(config, "gelu", "activation_function"),
            norm="pre",
            norm_epsilon=1e-5,
            biased=PROJECTIONS - {"key"},
        )
    )
    module = WhisperEncoder(
        sizes,
        bins=integer(config, "num_mel_bins", 80),
        tokens=integer(config, "max_source_positions", 1500),
        method=method,
    )
    weights = [
        *(Weight(f"conv_{n}/kernel", f"encoder.conv{n}.weight", conv_kernel) for n in (1, 2)),
        *(Weight(f"conv_{n}/bias", f"encoder.conv{n}.bias") for n in (1, 2)),
        Weight("positions", "encoder.embed_positions.weight"),
        *block_weights(sizes, "encoder.layers.{layer}.", BLOCK),
        *norm_weights(sizes, "norm", "encoder.layer_norm"),
    ]
    return Encoder(
        module,
        sizes,
        WeightMap(tuple(weights), IGNORED, prefix="model."),
        example=Sound(jnp.zeros((1, 2 * module.tokens, module.bins)), jnp.asarray([1])),
        class_tokens=0,
    )


def _size(width: int, depth: int, heads: int, bins: int = 80) -> dict:
    return {
        "model_type": "whisper",
        "d_model": width,
        "encoder_layers": depth,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * width,
        "num_mel_bins": bins,
        "max_source_positions": 1500,
        "activation_function": "gelu",
    }


PRESETS = {
    "whisper-tiny": _size(384, 4, 6),
    "whisper-base": _size(512, 6, 8),
    "whisper-small": _size(768, 12, 12),
    "whisper-medium": _size(1024, 24, 16),
    "whisper-large": _size(1280, 32, 20),
    "whisper-large-v3": _size(1280, 32, 20, bins=128),
}
FAMILIES = (Family("whisper", "audio", build, PRESETS),)
