"""SASRec as IISAN's code has it: a post-norm causal transformer over item vectors (papers.md 1.0, item 8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.dropout import Numbered, dropped, keep_masks
from mmrec_jax.errors import ConfigError
from mmrec_jax.products import dense_product, times
from mmrec_jax.sequence.steps import BatchPart, collect, spread


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
    """Causal self-attention over a left-padded history.

    Everything but the attention itself works on one position at a time, and reads the positions one after another; a
    caller that names the positions it needs is spared the padding.
    """

    config: SasRecConfig

    @nn.compact
    def __call__(
        self,
        items: Float[Array, "*position width"],
        mask: Bool[Array, "batch length"],
        *,
        train: bool,
        steps: Int[Array, " step"] | None = None,
        part: BatchPart | None = None,
    ) -> Float[Array, "*position width"]:
        """User vectors after each position.

        Args:
            items: item vectors [batch, length, width] or, with `steps`, [step, width].
            mask: which positions are not padding.
            train: whether to drop out.
            steps: the positions that `items` holds, ascending, as indices into the flattened `mask`; every position
                that is not padding must be among them. Entries of batch x length stand for nothing.
            part: where in a larger batch these rows lie, which what is dropped depends on.

        Returns:
            Vectors in the shape of `items`.
        """
        config = self.config
        rows, length = mask.shape
        slots = jnp.arange(rows * length) if steps is None else steps
        xavier = nn.initializers.xavier_normal()
        dense = partial(nn.Dense, kernel_init=xavier, dot_general=dense_product)
        position = self.param("position", xavier, (config.length, config.width))[-length:]
        x = items.reshape(-1, config.width) + position[slots % length]
        drop = self._dropout(x.shape, (rows, config.heads, length, length), slots, part, train)
        x = drop(nn.LayerNorm(epsilon=1e-6, name="norm")(x))
        causal = jnp.tril(jnp.ones((length, length), bool))
        bias = jnp.where(causal & mask[:, None, :], 0.0, -1e9)[:, None]
        for block in range(config.blocks):
            attended = self._attention(x, bias, steps, f"block_{block}", drop)
            x = nn.LayerNorm(epsilon=1e-6, name=f"block_{block}_attention_norm")(x + attended)
            hidden = dense(4 * config.width, name=f"block_{block}_in")(x)
            out = dense(config.width, name=f"block_{block}_out")(jax.nn.relu(hidden))
            x = nn.LayerNorm(epsilon=1e-6, name=f"block_{block}_norm")(x + drop(out))
        return x.reshape(items.shape)

    def _attention(self, x, bias, steps, name, drop) -> Float[Array, "step width"]:
        """Multi-head attention without biases."""
        config = self.config
        rows, _, _, length = bias.shape
        size = config.width // config.heads
        kernel = self.param(
            f"{name}_qkv", _three_xavier, (config.width, 3 * config.width)
        )  # one product for queries, keys and values
        # One row a user and head from here on: small products run fastest on arrays in the order they read.
        qkv = spread(times(x, kernel), steps, rows * length)
        query, key, value = qkv.reshape(rows, length, 3, config.heads, size).transpose(2, 0, 3, 1, 4)
        scores = query @ key.swapaxes(-1, -2) / jnp.sqrt(size) + bias
        weights = drop(jax.nn.softmax(scores, axis=-1))
        out = collect((weights @ value).swapaxes(1, 2).reshape(rows * length, config.width), steps)
        out = times(out, self.param(f"{name}_output", nn.initializers.xavier_normal(), (config.width, config.width)))
        return drop(out)

    def _dropout(
        self,
        outputs: tuple[int, ...],
        weights: tuple[int, ...],
        slots: Int[Array, " step"],
        part: BatchPart | None,
        train: bool,
    ) -> Callable[[Array], Array]:
        """What drops out, called in the order of the module: after the input, and after the weights, the attention and
        the feed-forward of each block."""
        rate = self.config.dropout
        if not train or not rate:
            return lambda x: x
        rows, _, length, _ = weights
        part = part or BatchPart(0, rows)
        # By slot, and not by place among the steps: so a mask depends neither on the padding nor on the devices.
        of_outputs = Numbered(slots + part.first * length, part.rows * length)
        of_weights = Numbered(jnp.arange(rows) + part.first, part.rows)
        shapes = [outputs, *(self.config.blocks * [weights, outputs, outputs])]
        numbered = [of_outputs, *(self.config.blocks * [of_weights, of_outputs, of_outputs])]
        masks = iter(keep_masks(self.make_rng("dropout"), shapes, rate, numbered))
        return lambda x: dropped(x, next(masks), rate)


def _three_xavier(key, shape, dtype=jnp.float32):
    """Xavier-normal queries, keys and values, each drawn as the square matrix that it is."""
    width = shape[0]
    draw = nn.initializers.xavier_normal()
    return jnp.concatenate([draw(k, (width, width), dtype) for k in jax.random.split(key, 3)], axis=1)
