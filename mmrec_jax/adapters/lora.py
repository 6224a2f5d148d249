"""LoRA (arXiv 2106.09685): a product of two thin matrices beside a frozen projection, and merging it into that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float

from mmrec_jax.dropout import drop
from mmrec_jax.errors import ConfigError
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
    """A backbone whose projections have LoRA's products in them: the same function without the method.

    The kernels that change are float32, whatever they were, so that nothing is lost here. A module in bfloat16 rounds
    them as it computes: its outputs differ from those beside LoRA as far as both differ from float32's.

    Args:
        backbone: parameters of the frozen backbone; not changed.
        added: what LoRA added to it, under `added_<place>` beside each projection.
        alpha: as the modules had it.

    Raises:
        ConfigError: `added` is empty, or has something else than LoRA's matrices for projections of this backbone.
    """
    return _moved(backbone, added, alpha)


def unmerge(merged: Params, added: Params, alpha: float) -> Params:
    """The backbone that `merge` was given, up to float32's rounding of one sum and one difference; errors as there."""
    return _moved(merged, added, -alpha)


def _moved(backbone: Params, added: Params, alpha: float) -> Params:
    kernels: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(backbone))
    for place, (a, b) in _pairs(kernels, added).items():
        product = jnp.asarray(a, jnp.float32) @ jnp.asarray(b, jnp.float32)
        kernels[place] = jnp.asarray(kernels[place], jnp.float32) + (alpha / a.shape[1]) * product
    return traverse_util.unflatten_dict(kernels)


def _pairs(kernels: Mapping[tuple[str, ...], Any], added: Params) -> dict[tuple[str, ...], tuple[Any, Any]]:
    """Path of a kernel -> LoRA's matrices beside it."""
    leaves: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(added))
    found = {}
    for path in leaves or [("nothing",)]:
        *module, last = path
        a, b = (leaves.get((*module, matrix)) for matrix in ("a", "b"))
        place = (*module[:-1], "dense", "kernel")
        kernel = kernels.get(place)
        if last not in ("a", "b") or a is None or b is None or kernel is None or _shape(a, b) != kernel.shape:
            raise ConfigError(
                f"{'/'.join(path)} is no matrix of LoRA beside a projection of this backbone: give what kind='lora' "
                "trained inside it, params['embedded'][MODALITY]."
            )
        found[place] = a, b
    return found


def _shape(a: Any, b: Any) -> tuple[int, ...]:
    """Of the product of two matrices; () where they have none."""
    return (a.shape[0], b.shape[1]) if a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] else ()
