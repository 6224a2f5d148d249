"""What a family of encoders must say about itself, and readers of config.json that check as they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.backbones.config import COMPUTE_DTYPES
from mmrec_jax.backbones.transformer import ACTIVATIONS, PROJECTIONS, BlockMethod, TransformerConfig
from mmrec_jax.backbones.weights import Weight, WeightMap, dense, layer_norm
from mmrec_jax.errors import BackboneError, ConfigError


@struct.dataclass
class Tokens:
    """Tokenised texts, one or several a row.

    Attributes:
        ids: of the tokens.
        mask: True where a token is not padding.
        texts: which text of its row a token belongs to, counted from 1; 0 is padding. None where every row is one
            text. Only encoders that say so (`packs`) take several.
    """

    ids: Int[Array, "batch token"]
    mask: Bool[Array, "batch token"]
    texts: Int[Array, "batch token"] | None = None

    @property
    def positions(self) -> Int[Array, "batch token"]:
        """Of each token in its text, from 0; 0 for the padding of rows of several texts."""
        places = jnp.broadcast_to(jnp.arange(self.ids.shape[1]), self.ids.shape)
        if self.texts is None:
            return places
        before = jnp.pad(self.texts, ((0, 0), (1, 0)))[:, :-1]
        starts = jnp.where(self.texts != before, places, 0)
        return jnp.where(self.texts > 0, places - jax.lax.cummax(starts, axis=1), 0)


@struct.dataclass
class Sound:
    """Recordings, padded at their ends: samples or spectrograms, and how many steps of time are not padding."""

    values: Float[Array, "batch time *bin"]
    lengths: Int[Array, " batch"]


@dataclass(frozen=True)
class Encoder:
    """A module and where its weights come from, both made from one config.json.

    Attributes:
        module: takes `Tokens`, pixels [batch height width channel] or `Sound` and returns depth + 1 hidden states
            [batch token width], equal to transformers' `hidden_states`. Its `final_norm` method turns the last of
            them into transformers' last_hidden_state. It keeps the core's sizes in a field `config`, through which
            `load` sets dtype and rematerialisation. For audio, its `token_mask` method tells which tokens are not
            padding.
        transformer: the sizes of its core.
        weight_map: where each of its parameters comes from.
        example: the smallest input, from which the parameters' shapes follow.
        vocabulary: for text, how many token ids it knows.
        max_tokens: for text, how many positions it has.
        class_tokens: how many of the first tokens stand for the whole; "cls" pooling is their mean, and there is
            none where this is 0.
        registers: how many tokens after those are registers, which "mean" pooling leaves out.
    """

    module: nn.Module
    transformer: TransformerConfig
    weight_map: WeightMap
    example: Tokens | Array | Sound
    vocabulary: int = 0
    max_tokens: int = 0
    class_tokens: int = 1
    registers: int = 0


@dataclass(frozen=True)
class Family:
    """One `model_type` of config.json.

    Attributes:
        model_type: the name in config.json.
        kind: what it encodes: "text", "image", "video" or "audio". A model with towers of several kinds (CLIP) is one
            family a kind.
        build: makes the encoder from config.json; the method, if any, is applied at the blocks' places.
        presets: the published sizes: a checkpoint's name -> what its config.json says.
        tower: of a model with several towers, what transformers' model of all of them puts before this one's names.
    """

    model_type: str
    kind: str
    build: Callable[[dict, BlockMethod | None], Encoder]
    presets: Mapping[str, dict] = field(default_factory=dict)
    tower: str = ""


def computed_as(encoder: Encoder, dtype: str, remat: bool) -> Encoder:
    """The encoder with its core's dtype and rematerialisation set; its parameters stay the same.

    Raises:
        ConfigError: the dtype is neither float32 nor bfloat16.
    """
    if dtype not in COMPUTE_DTYPES:
        raise ConfigError(f"backbone dtype {dtype!r} is unknown: use one of {', '.join(COMPUTE_DTYPES)}")
    sizes = replace(encoder.transformer, dtype=dtype, remat=remat)
    return replace(encoder, module=encoder.module.clone(config=sizes), transformer=sizes)


def integer(config: dict, key: str, default: int | None = None, least: int = 1) -> int:
    """A whole number of config.json.

    Raises:
        BackboneError: it is absent (or null) and has no default, or is no whole number of at least `least`.
    """
    value = number({key: default if config.get(key) is None else config[key]}, key, least=least)
    if value != int(value):
        raise BackboneError(f"config.json: {key} is {value!r}, which is not a whole number")
    return int(value)


def number(config: dict, key: str, default: float | None = None, least: float = 0) -> float:
    """A number of config.json.

    Raises:
        BackboneError: it is absent (or null) and has no default, or is no finite number of at least `least`.
    """
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value < float("inf"):
        raise BackboneError(f"config.json: {key} is {value!r}, which is not a number of at least {least}")
    return float(value)


def subconfig(config: dict, key: str) -> dict:
    """The part of config.json about one tower.

    Raises:
        BackboneError: it is absent or no object.
    """
    value = config.get(key)
    if not isinstance(value, dict):
        raise BackboneError(f"config.json: {key} is {value!r}, which is no object")
    return value


def token_example() -> Tokens:
    """One text of one token."""
    return Tokens(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool))


def pair(config: dict, key: str, default: int) -> tuple[int, int]:
    """A size of config.json given as one number or as [height, width]."""
    value = config.get(key, default)
    height, width = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    return integer({key: height}, key), integer({key: width}, key)


def activation(config: dict, default: str, key: str = "hidden_act") -> str:
    """The feed-forward's activation.

    Raises:
        BackboneError: it is not one of those the core has.
    """
    name = config.get(key, default)
    if name not in ACTIVATIONS:
        raise BackboneError(f"config.json: {key} {name!r} is unknown; known are {', '.join(sorted(ACTIVATIONS))}")
    return name


def biased_projections(config: dict, key: str = "qkv_bias") -> frozenset[str]:
    """All projections, less query, key and value where config.json sets `key` to false."""
    return PROJECTIONS if config.get(key, True) else PROJECTIONS - {"query", "key", "value"}


def refuse(config: dict, key: str, allowed: object, why: str) -> None:
    """Raises BackboneError where config.json sets `key` to something else than the one supported value."""
    if config.get(key, allowed) != allowed:
        raise BackboneError(f"config.json: {key} is {config[key]!r}, but only {allowed!r} is supported: {why}")


def check_heads(config: TransformerConfig) -> TransformerConfig:
    """The config back, once its heads are seen to fit.

    Raises:
        BackboneError: the heads do not divide the width, or those of the keys do not divide the heads.
    """
    if not config.head_width and config.width % config.heads:
        raise BackboneError(f"config.json: {config.heads} attention heads do not divide the width {config.width}")
    if config.key_heads and config.heads % config.key_heads:
        raise BackboneError(
            f"config.json: {config.key_heads} heads of keys and values do not divide {config.heads} attention heads"
        )
    if config.rotary and config.features_per_head % 2:
        raise BackboneError(f"config.json: rotary positions need an even head width, not {config.features_per_head}")
    return config


def block_weights(
    config: TransformerConfig,
    source: str,
    names: dict[str, str],
    target: str = "transformer/block_{layer}",
    modules: Mapping[str, str] = MappingProxyType({}),
) -> list[Weight]:
    """The weights of all blocks.

    Args:
        config: the core's sizes.
        source: a block's prefix with `{layer}` in it.
        names: place in our block -> name in theirs: projections ("query", ..., "down"; those left out are the
            family's own affair), "attention_norm", "feed_forward_norm"; with a layer scale "attention_scale",
            "feed_forward_scale"; with sub-normalisation "attention_sub_norm", "feed_forward_sub_norm". A bias that
            is not beside its weight is named too: "query_bias" and so on.
        target: our block's path.
        modules: projection -> transformers' name of its module with `{layer}` in it, for those that the tensors' names
            do not tell.
    """
    made: list[Weight] = []
    for layer in range(config.depth):
        theirs = {place: source.format(layer=layer) + name for place, name in names.items()}
        ours = target.format(layer=layer)
        for place in sorted(PROJECTIONS & theirs.keys()):
            path = f"{ours}/{'feed_forward' if place in ('up', 'gate', 'down') else 'attention'}/{place}/dense"
            module = modules.get(place, "").format(layer=layer)
            made += dense(path, theirs[place], bias=False, module=module)
            if place in config.biased:
                made.append(Weight(f"{path}/bias", theirs.get(f"{place}_bias", f"{theirs[place]}.bias")))
        for part in ("attention", "feed_forward"):
            made += norm_weights(config, f"{ours}/{part}_norm", theirs[f"{part}_norm"])
            if config.sub_norm:
                made += norm_weights(config, f"{ours}/{part}/sub_norm", theirs[f"{part}_sub_norm"])
            if config.layer_scale:
                made.append(Weight(f"{ours}/{part}_scale", theirs[f"{part}_scale"]))
    return made


def norm_weights(config: TransformerConfig, target: str, source: str) -> list[Weight]:
    """A normalisation of the core's kind: scale, and a bias unless it is an RMSNorm."""
    made = layer_norm(target, source)
    return made[:1] if config.norm_kind == "rms" else made
