"""SASRec as IISAN's code has it: a post-norm causal transformer over item vectors (papers.md 1.0, item 8)."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmrec_jax.errors import ConfigError


@dataclass(frozen=True)
class SasRecConfig:
    """Sizes of the user encoder.

    Attributes:
        width: of item and user vectors.
        length: longest history, in items.
        blocks: transformer blocks.
        heads: attention heads; must divide `width`.
        dropout: rate, on the embeddings, the attention weights and both outputs of a block.
    """

    width: int = 64
    length: int = 10
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.1

    def __post_init__(self):
        if self.width % self.heads:
            raise ConfigError(f"user.heads={self.heads} does not divide the width {self.width}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"user.dropout={self.dropout}: must lie in [0, 1).")


class SasRec(nn.Module):
    """Causal self-attention over a left-padded history."""

    config: SasRecConfig

    @nn.compact
    def __call__(
        self,
        items: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"],
        *,
        train: bool,
    ) -> Float[Array, "batch length width"]:
        """User vector after each position; `mask` says which positions are not padding."""
        config = self.config
        xavier = nn.initializers.xavier_normal()
        position = self.param("position", xavier, (config.length, config.width))
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(items + position[-items.shape[1] :])
        x = self._dropout(x, train)
        length = items.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))
        bias = jnp.where(causal & mask[:, None, :], 0.0, -1e9)[:, None]
        for block in range(config.blocks):
            attended = self._attention(x, bias, f"block_{block}", train)
            x = nn.LayerNorm(epsilon=1e-6, name=f"block_{block}_attention_norm")(x + attended)
            hidden = nn.Dense(4 * config.width, kernel_init=xavier, name=f"block_{block}_in")(x)
            out = nn.Dense(config.width, kernel_init=xavier, name=f"block_{block}_out")(jax.nn.relu(hidden))
            x = nn.LayerNorm(epsilon=1e-6, name=f"block_{block}_norm")(x + self._dropout(out, train))
        return x

    def _attention(self, x, bias, name, train) -> Float[Array, "batch length width"]:
        """Multi-head attention without biases."""
        config = self.config
        size = config.width // config.heads
        kernel = self.param(
            f"{name}_qkv", _three_xavier, (config.width, 3 * config.width)
        )  # one product for queries, keys and values
        # One row a user and head from here on: small products run fastest on arrays in the order they read.
        qkv = (x @ kernel).reshape(*x.shape[:2], 3, config.heads, size).transpose(2, 0, 3, 1, 4)
        query, key, value = qkv
        scores = query @ key.swapaxes(-1, -2) / jnp.sqrt(size) + bias
        weights = self._dropout(jax.nn.softmax(scores, axis=-1), train)
        out = (weights @ value).swapaxes(1, 2).reshape(x.shape)
        out = out @ self.param(f"{name}_output", nn.initializers.xavier_normal(), (config.width, config.width))
        return self._dropout(out, train)

    def _dropout(self, x, train):
        if not train or not self.config.dropout:
            return x
        return dropout(self.make_rng("dropout"), x, self.config.dropout)


def dropout(rng: Array, x: Float[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
    """Inverted dropout that spends 16 random bits on an entry: half of what `jax.random.bernoulli` draws.

    The rate is kept to 2^-16. Without this, drawing masks takes a tenth of the main job's step on a CPU.
    """
    words = jax.random.bits(rng, (*x.shape[:-1], -(-x.shape[-1] // 2)))
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    keep = bits >= round(rate * 2**16)
    return jnp.where(keep, x / (1.0 - rate), 0.0)


def _three_xavier(key, shape, dtype=jnp.float32):
    """Xavier-normal queries, keys and values, each drawn as the square matrix that it is."""
    width = shape[0]
    draw = nn.initializers.xavier_normal()
    return jnp.concatenate([draw(k, (width, width), dtype) for k in jax.random.split(key, 3)], axis=1)
