"""What a family of encoders must say about itself, and readers of config.json that check as they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Int

from mmrec_jax.backbones.transformer import ACTIVATIONS, BlockMethod, TransformerConfig
from mmrec_jax.backbones.weights import Weight, WeightMap, dense, layer_norm
from mmrec_jax.errors import BackboneError


@struct.dataclass
class Tokens:
    """Tokenised texts: ids, and True where a token is not padding."""

    ids: Int[Array, "batch token"]
    mask: Bool[Array, "batch token"]


@dataclass(frozen=True)
class Encoder:
    """A module and where its weights come from, both made from one config.json.

    Attributes:
        module: takes `Tokens` or pixels [batch height width channel] and returns depth + 1 hidden states
            [batch token width]. Its `final_norm` method turns the last of them into transformers'
            last_hidden_state.
        transformer: the sizes of its core.
        weight_map: where each of its parameters comes from.
        example: the smallest input, from which the parameters' shapes follow.
        vocabulary: for text, how many token ids it knows.
        max_tokens: for text, how many positions it has.
    """

    module: nn.Module
    transformer: TransformerConfig
    weight_map: WeightMap
    example: Tokens | Array
    vocabulary: int = 0
    max_tokens: int = 0


@dataclass(frozen=True)
class Family:
    """One `model_type` of config.json.

    Attributes:
        model_type: the name in config.json.
        kind: what it encodes: "text" or "image".
        build: makes the encoder from config.json; the method, if any, is applied at the blocks' places.
    """

    model_type: str
    kind: str
    build: Callable[[dict, BlockMethod | None], Encoder]


def integer(config: dict, key: str, default: int | None = None) -> int:
    """A positive whole number of config.json.

    Raises:
        BackboneError: it is absent and has no default, or is no positive whole number.
    """
    value = config.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or value != int(value) or value < 1:
        raise BackboneError(f"config.json: {key} is {value!r}, which is not a positive whole number")
    return int(value)


def pair(config: dict, key: str, default: int) -> tuple[int, int]:
    """A size of config.json given as one number or as [height, width]."""
    value = config.get(key, default)
    height, width = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    return integer({key: height}, key), integer({key: width}, key)


def activation(config: dict, default: str) -> str:
    """The feed-forward's activation.

    Raises:
        BackboneError: it is not one of those the core has.
    """
    name = config.get("hidden_act", default)
    if name not in ACTIVATIONS:
        raise BackboneError(f"config.json: hidden_act {name!r} is unknown; known are {', '.join(sorted(ACTIVATIONS))}")
    return name


def refuse(config: dict, key: str, allowed: object, why: str) -> None:
    """Raises BackboneError where config.json sets `key` to something else than the one supported value."""
    if config.get(key, allowed) != allowed:
        raise BackboneError(f"config.json: {key} is {config[key]!r}, but only {allowed!r} is supported: {why}")


def check_heads(config: TransformerConfig) -> TransformerConfig:
    """Raises BackboneError unless the heads divide the width; else gives the config back."""
    if config.width % config.heads:
        raise BackboneError(f"config.json: {config.heads} attention heads do not divide the width {config.width}")
    return config


def block_weights(config: TransformerConfig, source: str, names: dict[str, str]) -> list[Weight]:
    """The weights of all blocks.

    Args:
        config: the core's sizes.
        source: a block's prefix with `{layer}` in it.
        names: place in our block -> name in theirs, for "query", "key", "value", "attention_out",
            "attention_norm", "feed_forward_norm"; "up" and "down" where they are plain projections; with a
            layer scale also "attention_scale", "feed_forward_scale".
    """
    made: list[Weight] = []
    for layer in range(config.depth):
        theirs = {place: source.format(layer=layer) + name for place, name in names.items()}
        ours = f"transformer/block_{layer}"
        for place in ("query", "key", "value"):
            made += dense(f"{ours}/attention/{place}/dense", theirs[place], config.qkv_bias)
        made += dense(f"{ours}/attention/attention_out/dense", theirs["attention_out"])
        for place in {"up", "down"} & theirs.keys():
            made += dense(f"{ours}/feed_forward/{place}/dense", theirs[place])
        for place in ("attention_norm", "feed_forward_norm"):
            made += layer_norm(f"{ours}/{place}", theirs[place])
        if config.layer_scale:
            made += [Weight(f"{ours}/{p}", theirs[p]) for p in ("attention_scale", "feed_forward_scale")]
    return made
