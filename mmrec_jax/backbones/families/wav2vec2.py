"""Wav2Vec2 (arXiv 2006.11477): convolutions over samples, then a transformer with convolved positions.

Hidden state 0 is what enters the first block; in the models without stable layer norm (base) every state is
normalised inside its block, in those with it (large) the last one comes before the final normalisation, as in
transformers.

A recording gives the same states alone as padded in a batch. Where the first convolution is normalised over time
("group" norm), the original does not mask: it lets padding change a recording. Here the states are those that
the original gives the recording alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mmrec_jax.backbones.audio_features import CONV_KERNEL, CONV_STRIDE, receptive_field
from mmrec_jax.backbones.families.whisper import conv_kernel
from mmrec_jax.backbones.family import (
    Encoder,
    Family,
    Sound,
    activation,
    block_weights,
    check_heads,
    integer,
    norm_weights,
    number,
    refuse,
)
from mmrec_jax.backbones.transformer import ACTIVATIONS, BlockMethod, Transformer, TransformerConfig, make_norm
from mmrec_jax.backbones.weights import Weight, WeightMap, dense, layer_norm
from mmrec_jax.errors import BackboneError

BLOCK = {
    "query": "attention.q_proj",
    "key": "attention.k_proj",
    "value": "attention.v_proj",
    "attention_out": "attention.out_proj",
    "attention_norm": "layer_norm",
    "up": "feed_forward.intermediate_dense",
    "down": "feed_forward.output_dense",
    "feed_forward_norm": "final_layer_norm",
}
IGNORED = {
    r"masked_spec_embed": "stands for masked states in pre-training only",
    r"(quantizer|project_hid|project_q)\..*": "heads of pre-training",
    r"(lm_head|projector|classifier|feature_extractor|objective)\.(weight|bias)": "head of a task",
    r"tdnn\..*": "head of a task",
    r"layer_weights": "weighs the hidden states for a task",
    r"adapter\..*": "shortens the last hidden state; hidden states are taken before it",
}
RENAMED = {
    r"\.weight_g$": ".parametrizations.weight.original0",
    r"\.weight_v$": ".parametrizations.weight.original1",
}
CONV_EPSILON = 1e-5

States = TypeVar("States", int, Array)


@dataclass(frozen=True)
class ConvConfig:
    """What comes before the blocks.

    Attributes:
        widths: features of each convolution over time.
        kernels: its samples or states.
        strides: from one of its states to the next.
        biased: whether they have biases.
        norm: "group" normalises each feature of the first convolution over time, "layer" the features of each state
            of every convolution.
        activation: after each convolution, and after that of positions.
        projection_norm: whether states are normalised before their projection to the core's width.
        positions: states that the convolution of positions sees.
        groups: of its features, each of which sees only itself.
    """

    widths: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    biased: bool
    norm: str
    activation: str
    projection_norm: bool
    positions: int
    groups: int

    def states(self, samples: States) -> States:
        """How many states so many samples give; 0 or less where they are too few for one."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples


class ConvNorm(nn.Module):
    """Normalises what a convolution gives: each feature over the time inside the recording, or each state."""

    over_time: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch time feature"], inside: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time feature"]:
        wide, width = x.astype(jnp.float32), x.shape[-1]
        if self.over_time:
            axis, shares = 1, (inside / jnp.maximum(inside.sum(axis=1, keepdims=True), 1))[..., None]
        else:
            axis, shares = 2, jnp.full(width, 1 / width)
        centred = wide - (wide * shares).sum(axis, keepdims=True)
        variance = (centred**2 * shares).sum(axis, keepdims=True)
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        return (centred * jax.lax.rsqrt(variance + CONV_EPSILON) * scale + bias).astype(x.dtype)


class Wav2Vec2(nn.Module):
    """Samples to hidden states, one each 20 ms."""

    config: TransformerConfig
    convolutions: ConvConfig
    method: BlockMethod | None = None

    def setup(self) -> None:
        c, dtype = self.convolutions, self.config.dtype
        self.convs = [
            nn.Conv(width, (kernel,), (stride,), padding="VALID", use_bias=c.biased, dtype=dtype)
            for width, kernel, stride in zip(c.widths, c.kernels, c.strides, strict=True)
        ]
        over_time = c.norm == "group"
        self.conv_norms = [ConvNorm(over_time) for _ in c.widths[: 1 if over_time else None]]
        if c.projection_norm:
            self.projection_norm = make_norm(self.config)
        self.projection = nn.Dense(self.config.width, dtype=dtype)
        self.positions = nn.Conv(
            self.config.width, (c.positions,), padding=c.positions // 2, feature_group_count=c.groups, dtype=dtype
        )
        self.norm = make_norm(self.config)
        self.transformer = Transformer(self.config, self.method)

    def __call__(self, sound: Sound) -> tuple[Float[Array, "batch token width"], ...]:
        c = self.convolutions
        mask = self.token_mask(sound)
        x = self._convolved(sound)
        x = self.projection(self.projection_norm(x) if c.projection_norm else x)
        x = jnp.where(mask[..., None], x, 0)
        # An even kernel gives one state too many at the end.
        x = x + ACTIVATIONS[c.activation](self.positions(x)[:, : x.shape[1]])
        if self.config.norm == "post":
            x = self.norm(x)
        states = self.transformer(x, mask)
        if self.is_initializing():
            self.norm(states[-1])
        return states

    def _convolved(self, sound: Sound) -> Float[Array, "batch token feature"]:
        c = self.convolutions
        x = sound.values[..., None].astype(self.config.dtype)
        lengths = sound.lengths
        for n, conv in enumerate(self.convs):
            x, lengths = conv(x), (lengths - c.kernels[n]) // c.strides[n] + 1
            if n < len(self.conv_norms):
                x = self.conv_norms[n](x, jnp.arange(x.shape[1]) < lengths[:, None])
            x = ACTIVATIONS[c.activation](x)
        return x

    def token_mask(self, sound: Sound) -> Bool[Array, "batch token"]:
        """True for the states that see the recording only."""
        tokens = self.convolutions.states(sound.values.shape[1])
        return jnp.arange(tokens) < self.convolutions.states(sound.lengths)[:, None]

    def final_norm(self, state: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        """transformers' last_hidden_state of the last hidden state."""
        return self.norm(state) if self.config.norm == "pre" else jnp.asarray(state)


def normed_kernel(gain: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Weight normalisation (arXiv 1602.07868) undone: at each place in time, `direction` at the length `gain`."""
    return conv_kernel(gain * direction / np.sqrt((direction**2).sum(axis=(0, 1), keepdims=True)))


def waveform_encoder(config: dict, prefix: str, projection_norm: bool, method: BlockMethod | None) -> Encoder:
    """An encoder of Wav2Vec2's kind: the family says its prefix and whether the projection's input is normalised."""
    stable = bool(config.get("do_stable_layer_norm", False))
    sizes = check_heads(
        TransformerConfig(
            width=integer(config, "hidden_size"),
            depth=integer(config, "num_hidden_layers"),
            heads=integer(config, "num_attention_heads"),
            hidden=integer(config, "intermediate_size"),
            activation=activation(config, "gelu"),
            norm="pre" if stable else "post",
            norm_epsilon=number(config, "layer_norm_eps", 1e-5),
        )
    )
    convolutions = read_convolutions(config, projection_norm)
    if sizes.width % convolutions.groups:
        raise BackboneError(
            f"config.json: {convolutions.groups} groups (num_conv_pos_embedding_groups) do not divide the width "
            f"{sizes.width}"
        )
    shortest = receptive_field(convolutions.kernels, convolutions.strides)
    return Encoder(
        Wav2Vec2(sizes, convolutions, method),
        sizes,
        WeightMap(tuple(waveform_weights(sizes, convolutions)), IGNORED, prefix, RENAMED),
        example=Sound(jnp.zeros((1, shortest)), jnp.asarray([shortest])),
        class_tokens=0,
    )


def read_convolutions(config: dict, projection_norm: bool) -> ConvConfig:
    """What config.json says of the convolutions.

    Raises:
        BackboneError: a list is no list of positive whole numbers, they differ in length, or the norm is unknown.
    """
    defaults = {"conv_dim": (512,) * 7, "conv_kernel": CONV_KERNEL, "conv_stride": CONV_STRIDE}
    lists = {}
    for key, default in defaults.items():
        value = config.get(key, default)
        if not isinstance(value, list | tuple) or not value:
            raise BackboneError(f"config.json: {key} is {value!r}, which is no list of numbers")
        lists[key] = tuple(integer({key: number}, key) for number in value)
    if len({len(value) for value in lists.values()}) > 1:
        raise BackboneError("config.json: conv_dim, conv_kernel and conv_stride are not of the same length")
    norm = config.get("feat_extract_norm", "group")
    if norm not in ("group", "layer"):
        raise BackboneError(f"config.json: feat_extract_norm {norm!r} is unknown; known are group, layer")
    return ConvConfig(
        widths=lists["conv_dim"],
        kernels=lists["conv_kernel"],
        strides=lists["conv_stride"],
        biased=bool(config.get("conv_bias", False)),
        norm=norm,
        activation=activation(config, "gelu", "feat_extract_activation"),
        projection_norm=projection_norm,
        positions=integer(config, "num_conv_pos_embeddings", 128),
        groups=integer(config, "num_conv_pos_embedding_groups", 16),
    )


def waveform_weights(sizes: TransformerConfig, convolutions: ConvConfig) -> list[Weight]:
    """Where the parameters come from."""
    weights, positions = [], "encoder.pos_conv_embed.conv"
    for n in range(len(convolutions.widths)):
        theirs = f"feature_extractor.conv_layers.{n}"
        weights.append(Weight(f"convs_{n}/kernel", f"{theirs}.conv.weight", conv_kernel))
        if convolutions.biased:
            weights.append(Weight(f"convs_{n}/bias", f"{theirs}.conv.bias"))
        if convolutions.norm == "layer" or n == 0:
            weights += layer_norm(f"conv_norms_{n}", f"{theirs}.layer_norm")
    if convolutions.projection_norm:
        weights += norm_weights(sizes, "projection_norm", "feature_projection.layer_norm")
    originals = tuple(f"{positions}.parametrizations.weight.original{n}" for n in (0, 1))
    return [
        *weights,
        *dense("projection", "feature_projection.projection"),
        Weight("positions/kernel", originals, normed_kernel),
        Weight("positions/bias", f"{positions}.bias"),
        *norm_weights(sizes, "norm", "encoder.layer_norm"),
        *block_weights(sizes, "encoder.layers.{layer}.", BLOCK),
    ]


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A Wav2Vec2 encoder from config.json."""
    refuse(config, "adapter_attn_dim", None, "adapters inside the blocks are another computation")
    return waveform_encoder(config, "wav2vec2.", True, method)


def size(model_type: str, width: int, depth: int, heads: int, large: bool) -> dict:
    """config.json of a published size; the large ones (but not the first of Wav2Vec2) normalise before each part."""
    return {
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "conv_dim": [512] * 7,
        "conv_kernel": list(CONV_KERNEL),
        "conv_stride": list(CONV_STRIDE),
        "conv_bias": large,
        "feat_extract_norm": "layer" if large else "group",
        "do_stable_layer_norm": large,
        "num_conv_pos_embeddings": 128,
        "num_conv_pos_embedding_groups": 16,
    }


PRESETS = {
    "wav2vec2-base": size("wav2vec2", 768, 12, 12, large=False),
    "wav2vec2-large": size("wav2vec2", 1024, 24, 16, large=False),
    "wav2vec2-large-lv60": size("wav2vec2", 1024, 24, 16, large=True),
}
FAMILIES = (Family("wav2vec2", "audio", build, PRESETS),)
