"""LoRA (arXiv 2106.09685): a product of two thin matrices beside a frozen projection, and merging it into that."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float

from mmrec_jax.dropout import drop
from mmrec_jax.types import Params


class LowRank(nn.Module):
    """``outputs + (alpha / rank) dropout(inputs) a b`` with ``a [in, rank]`` and ``b [rank, out]`` (equation 3).

    `b` starts as zero, `a` uniform in +-1/sqrt(in), as in the `peft` library. Dropout is on where `apply` is given a
    key "dropout".
    """

    rank: int
    alpha: float
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch token in"], outputs: Float[Array, "batch token out"]
    ) -> Float[Array, "batch token out"]:
        a = self.param("a", _uniform, (inputs.shape[-1], self.rank))
        b = self.param("b", nn.initializers.zeros, (self.rank, outputs.shape[-1]))
        small = drop(self, inputs, self.dropout) @ a.astype(outputs.dtype)
        return outputs + (small * (self.alpha / self.rank)) @ b.astype(outputs.dtype)


def _uniform(key: Array, shape: tuple[int, int]) -> Array:
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def merge(backbone: Params, added: Params, alpha: float) -> Params:
    """A backbone whose projections have LoRA's products in them: the same outputs without the method.

    Args:
        backbone: parameters of the frozen backbone; not changed.
        added: what LoRA added to it, under `added_<place>` beside each projection.
        alpha: as the modules had it.
    """
    return _moved(backbone, added, alpha)


def unmerge(merged: Params, added: Params, alpha: float) -> Params:
    """The backbone that `merge` was given, up to the rounding of one sum and one difference."""
    return _moved(merged, added, -alpha)


def _moved(backbone: Params, added: Params, alpha: float) -> Params:
    kernels: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(backbone))
    products = traverse_util.flatten_dict(added)
    for path in products:
        if path[-1] != "a":
            continue
        a, b = products[path], products[(*path[:-1], "b")]
        place = (*path[:-2], "dense", "kernel")
        product = jnp.asarray(a, jnp.float32) @ jnp.asarray(b, jnp.float32)
        kernel = jnp.asarray(kernels[place])
        kernels[place] = (kernel.astype(jnp.float32) + (alpha / a.shape[1]) * product).astype(kernel.dtype)
    return traverse_util.unflatten_dict(kernels)
