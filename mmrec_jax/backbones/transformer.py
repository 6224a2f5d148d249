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

BlockMethod = Callable[[str, int, str], nn.Module | None]
"""`method(place, layer, name)` puts a trainable module at a place of a block, without editing the block.

It is asked once for every place of `PLACES` in every block (`layer` counts from 0) and returns None to leave
the place as it is, or a Linen module made with `name=name`, which is called as `module(inputs, outputs)` with
what the place takes and what it gives, and whose result goes on in place of `outputs`. The projections are
"query", "key", "value", "attention_out", "up", "gate" and "down" (LoRA adds to their outputs); "attention" is
the whole attention (a bottleneck after attention works on its outputs); "feed_forward" is the whole
feed-forward (a parallel adapter adds a function of its inputs). The module's parameters lie under
`added_<place>` beside those of the place.
"""


@dataclass(frozen=True)
class TransformerConfig:
    """What distinguishes one transformer encoder from another.

    Attributes:
        width: features of a token.
        depth: number of blocks.
        heads: attention heads; each has width / heads features.
        hidden: features between the two projections of the feed-forward.
        activation: a key of `ACTIVATIONS`.
        norm: "pre" normalises the input of attention and feed-forward, "post" the sum after each.
        norm_epsilon: added to the variance in layer normalisation.
        qkv_bias: whether query, key and value projections have biases.
        layer_scale: whether a learned vector scales attention's and feed-forward's outputs.
        gated: whether the feed-forward is activation(gate x) * (up x) (SwiGLU when the activation is silu).
    """

    width: int
    depth: int
    heads: int
    hidden: int
    activation: str
    norm: Literal["pre", "post"]
    norm_epsilon: float
    qkv_bias: bool = True
    layer_scale: bool = False
    gated: bool = False


class Projection(nn.Module):
    """A dense layer at a named place, where a method may add to it."""

    features: int
    place: str
    layer: int
    use_bias: bool = True
    method: BlockMethod | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch token in"]) -> Float[Array, "batch token out"]:
        dense = nn.Dense(self.features, use_bias=self.use_bias, name="dense")(x)
        return apply_method(self.method, self.place, self.layer, x, dense)


def apply_method(method: BlockMethod | None, place: str, layer: int, inputs: Array, outputs: Array) -> Array:
    """Lets `method` replace a place's outputs; the compact module that calls this owns what it makes."""
    module = method(place, layer, f"added_{place}") if method else None
    return outputs if module is None else module(inputs, outputs)


class Attention(nn.Module):
    """Bidirectional multi-head self-attention with scores / sqrt(head width)."""

    config: TransformerConfig
    layer: int
    method: BlockMethod | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token width"], mask: Bool[Array, "batch token"] | None
    ) -> Float[Array, "batch token width"]:
        c = self.config
        head_width = c.width // c.heads

        def project(place: str) -> Float[Array, "batch token head feature"]:
            made = Projection(c.width, place, self.layer, c.qkv_bias, self.method, name=place)(x)
            return made.reshape(*made.shape[:-1], c.heads, head_width)

        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("bqhf,bkhf->bhqk", query, key) * head_width**-0.5
        if mask is not None:
            scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("bhqk,bkhf->bqhf", jax.nn.softmax(scores, axis=-1), value)
        mixed = mixed.reshape(x.shape)
        return Projection(c.width, "attention_out", self.layer, True, self.method, name="attention_out")(mixed)


class FeedForward(nn.Module):
    """Two projections with an activation between them, gated or not."""

    config: TransformerConfig
    layer: int
    method: BlockMethod | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        c = self.config
        up = Projection(c.hidden, "up", self.layer, True, self.method, name="up")(x)
        if c.gated:
            gate = Projection(c.hidden, "gate", self.layer, True, self.method, name="gate")(x)
            inner = ACTIVATIONS[c.activation](gate) * up
        else:
            inner = ACTIVATIONS[c.activation](up)
        return Projection(c.width, "down", self.layer, True, self.method, name="down")(inner)


class Block(nn.Module):
    """Attention and feed-forward, each with its residual, normalisation and optional layer scale."""

    config: TransformerConfig
    layer: int
    method: BlockMethod | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token width"], mask: Bool[Array, "batch token"] | None
    ) -> Float[Array, "batch token width"]:
        attention = Attention(self.config, self.layer, self.method, name="attention")
        feed_forward = FeedForward(self.config, self.layer, self.method, name="feed_forward")
        x = self._residual("attention", lambda inputs: attention(inputs, mask), x)
        return self._residual("feed_forward", feed_forward, x)

    def _residual(self, place: str, function: Callable[[Array], Array], x: Array) -> Array:
        c = self.config
        norm = nn.LayerNorm(epsilon=c.norm_epsilon, name=f"{place}_norm", use_fast_variance=False)
        inputs = norm(x) if c.norm == "pre" else x
        outputs = apply_method(self.method, place, self.layer, inputs, function(inputs))
        if c.layer_scale:
            outputs = outputs * self.param(f"{place}_scale", nn.initializers.ones, (c.width,))
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
        states = [x]
        for layer in range(self.config.depth):
            x = Block(self.config, layer, self.method, name=f"block_{layer}")(x, mask)
            states.append(x)
        return tuple(states)
