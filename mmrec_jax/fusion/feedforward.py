"""The experts of one modality: small networks of one shape, their parameters stacked."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from mmrec_jax.products import times


@struct.dataclass
class ExpertWeights:
    """Parameters of one modality's experts: ``out gelu(x kernel + bias) + out_bias`` each, or ``x kernel + bias`` where
    `out` and `out_bias` are None."""

    kernel: Float[Array, "expert width hidden"]
    bias: Float[Array, "expert hidden"]
    out: Float[Array, "expert hidden width"] | None = None
    out_bias: Float[Array, "expert width"] | None = None


def expert_weights(module: nn.Module, name: str, experts: int, width: int, linear: bool) -> ExpertWeights:
    """Parameter `experts_<name>` of a module, drawn as MOMEF's experts are."""

    def init(key: Array) -> dict[str, Array]:
        lecun = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
        keys, square = jax.random.split(key), (experts, width, width)
        made = {"kernel": lecun(keys[0], square), "bias": jnp.zeros((experts, width))}
        if linear:
            return made
        return made | {"out": lecun(keys[1], square), "out_bias": jnp.zeros((experts, width))}

    return ExpertWeights(**module.param(f"experts_{name}", init))


def all_experts(
    x: Float[Array, "token width"], shares: Float[Array, "token expert"], weights: ExpertWeights
) -> Float[Array, "token width"]:
    """``sum_j shares_j E_j(x)``: every expert computes every vector, as two products of matrices."""
    experts, width, hidden = weights.kernel.shape
    before = times(x, weights.kernel.transpose(1, 0, 2).reshape(width, -1)) + weights.bias.reshape(-1)
    before = before.reshape(-1, experts, hidden)
    if weights.out is None or weights.out_bias is None:
        return jnp.sum(shares[..., None] * before, axis=1)
    inner = shares[..., None] * jax.nn.gelu(before, approximate=False)
    return times(inner.reshape(x.shape[0], -1), weights.out.reshape(-1, width)) + shares @ weights.out_bias


def own_expert(x: Float[Array, "expert slot width"], weights: ExpertWeights) -> Float[Array, "expert slot width"]:
    """``E_j(x_j)``: each expert computes the vectors of its own buffer."""
    first = jnp.einsum("esw,ewh->esh", x, weights.kernel) + weights.bias[:, None]
    if weights.out is None or weights.out_bias is None:
        return first
    return jnp.einsum("esh,ehw->esw", jax.nn.gelu(first, approximate=False), weights.out) + weights.out_bias[:, None]
