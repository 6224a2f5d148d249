"""The side adapted network block (SANB) of IISAN (arXiv 2404.02059, section 3.2) as a pure function.

Both matrices are kept as ``[bottleneck, width]``: with this layout every product of the forward and the backward pass
reads its operands along their rows. The backward pass is written out so that the gradients of the matrices are
row-times-row products too (on two AVX-512 cores 1.3 to 2 times the speed of what differentiation gives).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrec_jax.products import times_transposed, transposed

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
    "identity": lambda x: x,
}


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def sanb(
    z: Float[Array, "item width"],
    down: Float[Array, "bottleneck width"],
    down_bias: Float[Array, " bottleneck"],
    up: Float[Array, "bottleneck width"],
    up_bias: Float[Array, " width"],
    activation: str = "relu",
) -> Float[Array, "item width"]:
    """``z + act(z @ down.T + down_bias) @ up + up_bias`` (IISAN, SANB; papers.md 1.0, item 3).

    Args:
        z: input of the block, one row an item.
        down: matrix to the bottleneck, stored transposed.
        down_bias: its bias.
        up: matrix from the bottleneck.
        up_bias: its bias.
        activation: a name in `ACTIVATIONS`.
    """
    return _sanb_forward(z, down, down_bias, up, up_bias, activation)[0]


def _sanb_forward(z, down, down_bias, up, up_bias, activation):
    before = z @ down.T + down_bias
    hidden = ACTIVATIONS[activation](before)
    return z + (hidden @ up + up_bias), (z, down, up, before)


def _sanb_backward(activation, saved, grad):
    z, down, up, before = saved
    by_before, by_up, by_up_bias = _through_bottleneck(activation, before, up, grad)
    return grad + by_before @ down, transposed(by_before) @ z, jnp.sum(by_before, axis=0), by_up, by_up_bias


sanb.defvjp(_sanb_forward, _sanb_backward)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def first_sanb(
    weight: Float[Array, ""],
    states: Float[Array, "item width"],
    down: Float[Array, "bottleneck width"],
    down_bias: Float[Array, " bottleneck"],
    up: Float[Array, "bottleneck width"],
    up_bias: Float[Array, " width"],
    activation: str = "relu",
) -> Float[Array, "item width"]:
    """`sanb` of ``weight * states`` for frozen states: their gradient, and its product, is never formed.

    The weight's gradient needs only what the forward pass has: ``<d out, states> + <d before, states @ down.T>``.
    """
    return _first_forward(weight, states, down, down_bias, up, up_bias, activation)[0]


def _first_forward(weight, states, down, down_bias, up, up_bias, activation):
    product = states @ down.T
    before = weight * product + down_bias
    out = weight * states + (ACTIVATIONS[activation](before) @ up + up_bias)
    return out, (weight, states, up, product, before)


def _first_backward(activation, saved, grad):
    weight, states, up, product, before = saved
    by_before, by_up, by_up_bias = _through_bottleneck(activation, before, up, grad)
    by_weight = jnp.sum(grad * states) + jnp.sum(by_before * product)
    by_down = transposed(weight * by_before) @ states
    return by_weight, jnp.zeros_like(states), by_down, jnp.sum(by_before, axis=0), by_up, by_up_bias


first_sanb.defvjp(_first_forward, _first_backward)


def last_sanb(
    z: Float[Array, "item width"],
    down: Float[Array, "bottleneck width"],
    down_bias: Float[Array, " bottleneck"],
    up: Float[Array, "bottleneck width"],
    up_bias: Float[Array, " width"],
    kernel: Float[Array, "out width"],
    bias: Float[Array, " out"],
    activation: str = "relu",
) -> Float[Array, "item out"]:
    """A linear map of `sanb`: ``sanb(z) @ kernel.T + bias``.

    The matrix from the bottleneck and the map are multiplied together before they meet the data, so that the wide
    output of the block is never formed.
    """
    hidden = ACTIVATIONS[activation](times_transposed(z, down) + down_bias)
    return times_transposed(z, kernel) + hidden @ (up @ kernel.T) + (kernel @ up_bias + bias)


def _through_bottleneck(activation, before, up, grad):
    """Gradients at the bottleneck's input, of `up` and of its bias, from that of the block's output."""
    hidden, activation_vjp = jax.vjp(ACTIVATIONS[activation], before)
    (by_before,) = activation_vjp(grad @ up.T)
    return by_before, transposed(hidden) @ grad, jnp.sum(grad, axis=0)
