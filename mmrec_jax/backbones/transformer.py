"""The transformer encoder that every family shares; what differs is data in `TransformerConfig`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mmrec_jax.backbones.rotary import Rotary, Turn, rotate, turn_of_positions

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}

PLACES = ("query", "key", "value", "attention_out", "attention", "up", "gate", "down", "feed_forward")
PROJECTIONS = frozenset(PLACES) - {"attention", "feed_forward"}

BlockMethod = Callable[[str, int, str], nn.Module | None]
"""`method(place, layer, name)` puts a trainable module at a place of a block, without editing the block.

It is asked once for every place of `PLACES` in every block (`layer` counts from 0) and returns None to leave
the place as it is, or a Linen module made with `name=name`, which is called as `module(inputs, outputs)` with
what the place takes and what it gives, and whose result, in the dtype of `outputs`, goes on in their place.
The projections are "query", "key", "value", "attention_out", "up", "gate" and "down" (LoRA adds to their
outputs); "attention" is the whole attention (a bottleneck after attention works on its outputs);
"feed_forward" is the whole feed-forward (a parallel adapter adds a function of its inputs). The module's
parameters lie under `added_<place>` beside those of the place.
"""


@dataclass(frozen=True)
class TransformerConfig:
    """What distinguishes one transformer encoder from another, and how it is computed.

    Attributes:
        width: features of a token.
        depth: number of blocks.
        heads: attention heads of the queries.
        hidden: features between the two projections of the feed-forward.
        activation: a key of `ACTIVATIONS`.
        norm: "pre" normalises the input of attention and feed-forward, "post" the sum after each.
        norm_epsilon: added to the variance (or mean square) in normalisation.
        norm_kind: "layer" subtracts the mean, divides by the deviation and has a bias; "rms" (arXiv 1910.07467)
            divides by the root mean square and has none.
        biased: the projections with biases, of `PROJECTIONS`.
        key_heads: heads of keys and values, each shared by heads / key_heads queries (arXiv 2305.13245); 0 is `heads`.
        head_width: features of a head; 0 is width / heads.
        causal: whether a token attends to itself and those before it only.
        rotary: rotary positions; None has none in the blocks.
        layer_scale: whether a learned vector scales attention's and feed-forward's outputs.
        gated: whether the feed-forward is activation(gate x) * (up x) (SwiGLU when the activation is silu).
        sub_norm: whether attention normalises before `attention_out`, and the feed-forward before `down`
            (arXiv 2210.06423).
        remat: whether the backward pass computes each block again instead of keeping what is inside it.
        dtype: "float32" or "bfloat16" of the hidden states and products; norms, softmax and rotation stay in float32.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    activation: str
    norm: Literal["pre", "post"]
    norm_epsilon: float
    norm_kind: Literal["layer", "rms"] = "layer"
    biased: frozenset[str] = PROJECTIONS
    key_heads: int = 0
    head_width: int = 0
    causal: bool = False
    rotary: Rotary | None = None
    layer_scale: bool = False
    gated: bool = False
    sub_norm: bool = False
    remat: bool = False
    dtype: str = "float32"

    @property
    def features_per_head(self) -> int:
        """Width of one head."""
        return self.head_width or self.width // self.heads


def make_norm(config: TransformerConfig, name: str | None = None) -> nn.LayerNorm | nn.RMSNorm:
    """A normalisation of the core's kind; it computes in float32 and gives the core's dtype."""
    kind = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[config.norm_kind]
    return kind(epsilon=config.norm_epsilon, dtype=config.dtype, use_fast_variance=False, name=name)


class Projection(nn.Module):
    """A dense layer at a named place, where a method may add to it."""

    config: TransformerConfig
    features: int
    place: str
    layer: int
    method: BlockMethod | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch token in"]) -> Float[Array, "batch token out"]:
        biased = self.place in self.config.biased
        dense = nn.Dense(self.features, use_bias=biased, dtype=self.config.dtype, name="dense")(x)
        return apply_method(self.method, self.place, self.layer, x, dense)


def apply_method(method: BlockMethod | None, place: str, layer: int, inputs: Array, outputs: Array) -> Array:
    """Lets `method` replace a place's outputs; the compact module that calls this owns what it makes."""
    module = method(place, layer, f"added_{place}") if method else None
    return outputs if module is None else module(inputs, outputs).astype(outputs.dtype)


Visible = Bool[Array, "batch_or_1 1 query_or_1 key"]
"""True where a query may attend to a key."""


def visible_keys(mask: Bool[Array, "batch token"] | None, causal: bool, length: int) -> Visible | None:
    """Which keys each query sees, of tokens that are not padding; None where every query sees every key."""
    padding = None if mask is None else mask[:, None, None, :]
    if not causal:
        return padding
    before = jnp.tril(jnp.ones((length, length), bool))[None, None]
    return before if padding is None else before & padding


class Attention(nn.Module):
    """Multi-head self-attention with scores / sqrt(head width)."""

    config: TransformerConfig
    layer: int
    method: BlockMethod | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token width"], visible: Visible | None, turn: Turn | None
    ) -> Float[Array, "batch token width"]:
        c = self.config
        features = c.features_per_head

        def project(place: str, heads: int) -> Float[Array, "batch token head feature"]:
            made = Projection(c, heads * features, place, self.layer, self.method, name=place)(x)
            return made.reshape(*made.shape[:-1], heads, features)

        key_heads = c.key_heads or c.heads
        query, key, value = project("query", c.heads), project("key", key_heads), project("value", key_heads)
        if turn is not None:
            query, key = rotate(query, turn), rotate(key, turn)
        if key_heads != c.heads:
            key, value = (jnp.repeat(shared, c.heads // key_heads, axis=2) for shared in (key, value))
        scores = jnp.einsum("bqhf,bkhf->bhqk", query, key, preferred_element_type=jnp.float32) * features**-0.5
        if visible is not None:
            scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
        shares = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bhqk,bkhf->bqhf", shares, value)
        mixed = mixed.reshape(*x.shape[:-1], c.heads * features)
        if c.sub_norm:
            mixed = make_norm(c, "sub_norm")(mixed)
        return Projection(c, c.width, "attention_out", self.layer, self.method, name="attention_out")(mixed)


class FeedForward(nn.Module):
    """Two projections with an activation between them, gated or not."""

    config: TransformerConfig
    layer: int
    method: BlockMethod | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        c = self.config
        up = Projection(c, c.hidden, "up", self.layer, self.method, name="up")(x)
        if c.gated:
            gate = Projection(c, c.hidden, "gate", self.layer, self.method, name="gate")(x)
            inner = ACTIVATIONS[c.activation](gate) * up
        else:
            inner = ACTIVATIONS[c.activation](up)
        if c.sub_norm:
            inner = make_norm(c, "sub_norm")(inner)
        return Projection(c, c.width, "down", self.layer, self.method, name="down")(inner)


class Block(nn.Module):
    """Attention and feed-forward, each with its residual, normalisation and optional layer scale."""

    config: TransformerConfig
    layer: int
    method: BlockMethod | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token width"], visible: Visible | None, turn: Turn | None
    ) -> Float[Array, "batch token width"]:
        attention = Attention(self.config, self.layer, self.method, name="attention")
        feed_forward = FeedForward(self.config, self.layer, self.method, name="feed_forward")
        x = self._residual("attention", lambda inputs: attention(inputs, visible, turn), x)
        return self._residual("feed_forward", feed_forward, x)

    def _residual(self, place: str, function: Callable[[Array], Array], x: Array) -> Array:
        c = self.config
        norm = make_norm(c, f"{place}_norm")
        inputs = norm(x) if c.norm == "pre" else x
        outputs = apply_method(self.method, place, self.layer, inputs, function(inputs))
        if c.layer_scale:
            outputs = outputs * self.param(f"{place}_scale", nn.initializers.ones, (c.width,)).astype(outputs.dtype)
        return x + outputs if c.norm == "pre" else norm(x + outputs)


class Transformer(nn.Module):
    """A stack of blocks that returns what enters the first and what leaves each."""

    config: TransformerConfig
    method: BlockMethod | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token width"], mask: Bool[Array, "batch token"] | None = None
    ) -> tuple[Float[Array, "batch token width"], ...]:
        """Depth + 1 hidden states, index 0 being `x`; nothing attends to tokens whose `mask` is False."""
        c = self.config
        length = x.shape[1]
        visible = visible_keys(mask, c.causal, length)
        turn = turn_of_positions(c.rotary, c.features_per_head, length) if c.rotary else None
        block = nn.remat(Block) if c.remat else Block
        states = [x.astype(c.dtype)]
        for layer in range(c.depth):
            states.append(block(c, layer, self.method, name=f"block_{layer}")(states[-1], visible, turn))
        return tuple(states)
