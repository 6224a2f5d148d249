"""Bottleneck adapters inside a backbone, after a part of a block or beside it."""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float

from mmrec_jax.adapters.sanb import ACTIVATIONS
from mmrec_jax.dropout import drop


class Bottleneck(nn.Module):
    """``outputs + scale up(act(down(dropout(x))))``; `up` starts as zero.

    One after the other (`beside` False): `x` is what the place gives (Houlsby et al., arXiv 1902.00751, section 2.1).
    In parallel (`beside` True): `x` is what the place takes (He et al., arXiv 2110.04366, table 1). Dropout is on where
    `apply` is given a key "dropout".
    """

    size: int
    activation: str
    beside: bool = False
    scale: float = 1.0
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch token width"], outputs: Float[Array, "batch token width"]
    ) -> Float[Array, "batch token width"]:
        dtype = outputs.dtype
        x = drop(self, inputs if self.beside else outputs, self.dropout)
        down = nn.Dense(self.size, dtype=dtype, kernel_init=nn.initializers.normal(0.01), name="down")
        up = nn.Dense(outputs.shape[-1], dtype=dtype, kernel_init=nn.initializers.zeros, name="up")
        return outputs + self.scale * up(ACTIVATIONS[self.activation](down(x)))
