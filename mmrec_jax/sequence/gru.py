"""GRU4Rec's user encoder (arXiv 1511.06939): gated recurrent units over item vectors."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.dropout import Numbered, dropped, keep_masks
from mmrec_jax.errors import ConfigError
from mmrec_jax.sequence.steps import BatchPart, collect, spread


@dataclass(frozen=True)
class GruConfig:
    """Sizes of the user encoder.

    Attributes:
        width: of item and user vectors, and of the state.
        length: longest history, in items.
        layers: recurrent layers, one upon the other.
        dropout: rate, on the input of each layer.
    """

    width: int = 64
    length: int = 10
    layers: int = 1
    dropout: float = 0.1

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"user.dropout={self.dropout}: must lie in [0, 1).")


class Gru(nn.Module):
    """A recurrent unit over a left-padded history; padding leaves the state as it is, which is zero at first.

    ``r = sigmoid(R x + P h)``, ``u = sigmoid(..)``, ``n = tanh(N x + r (M h + b))``, ``h' = (1 - u) n + u h``, with a
    bias beside each product with `x`. Those products are one, over the steps alone; only the ones with `h` go one item
    after the other.
    """

    config: GruConfig

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
            steps: the positions that `items` holds, as `SasRec` takes them.
            part: where in a larger batch these rows lie, which what is dropped depends on.

        Returns:
            Vectors in the shape of `items`.
        """
        config = self.config
        x = items.reshape(-1, config.width)
        keep = None
        if train and config.dropout:
            rows, length = mask.shape
            slots = jnp.arange(rows * length) if steps is None else steps
            part = part or BatchPart(0, rows)
            numbered = Numbered(slots + part.first * length, part.rows * length)
            shapes = config.layers * [x.shape]
            keep = keep_masks(self.make_rng("dropout"), shapes, config.dropout, config.layers * [numbered])
        for layer in range(config.layers):
            read = x if keep is None else dropped(x, keep[layer], config.dropout)
            x = self._layer(read, mask, steps, f"layer_{layer}")
        return x.reshape(items.shape)

    def _layer(self, x, mask, steps, name) -> Float[Array, "step width"]:
        width = self.config.width
        kernel = self.param(f"{name}_input", _three(nn.initializers.xavier_normal()), (width, 3 * width))
        bias = self.param(f"{name}_input_bias", nn.initializers.zeros, (3 * width,))
        recurrent = self.param(f"{name}_state", _three(nn.initializers.orthogonal()), (width, 3 * width))
        own_bias = self.param(f"{name}_state_bias", nn.initializers.zeros, (width,))
        rows, length = mask.shape
        inputs = spread(x @ kernel + bias, steps, rows * length).reshape(rows, length, 3 * width)

        def step(state, now):
            given, real = now
            reset, update, new = jnp.split(given, 3, axis=-1)
            by_reset, by_update, by_new = jnp.split(state @ recurrent, 3, axis=-1)
            update = jax.nn.sigmoid(update + by_update)
            new = jnp.tanh(new + jax.nn.sigmoid(reset + by_reset) * (by_new + own_bias))
            state = jnp.where(real[:, None], (1 - update) * new + update * state, state)
            return state, state

        start = lax.full_like(inputs[:, 0, :width], 0)
        _, states = lax.scan(step, start, (inputs.swapaxes(0, 1), mask.T))
        return collect(states.swapaxes(0, 1).reshape(rows * length, width), steps)


def _three(draw):
    """Three square matrices side by side, each drawn as the one that it is."""

    def init(key, shape, dtype=jnp.float32):
        width = shape[0]
        return jnp.concatenate([draw(k, (width, width), dtype) for k in jax.random.split(key, 3)], axis=1)

    return init
