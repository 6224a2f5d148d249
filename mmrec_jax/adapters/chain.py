"""A whole tower of SANB blocks as one function: the blocks of `sanb`, with each wide array written once.

On a CPU the step of a tower is bound by its products and by the arrays of [item, width] that are read and written
between them. Here a rung writes two: the mixed state forward, and its gradient backward. Side states themselves, their
gradients and anything scaled by a gate are never formed; scales are put on the thin arrays at the bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrec_jax.adapters.blocks import Block, Head
from mmrec_jax.adapters.sanb import ACTIVATIONS
from mmrec_jax.products import transposed

Sources = Sequence[Float[Array, "item width"]]


def tower(
    first_weight: Float[Array, ""],
    sources: Sources,
    shares: Float[Array, " rung"],
    blocks: Sequence[Block],
    head: Head,
    activation: str = "relu",
    frozen: bool = False,
) -> Float[Array, "item out"]:
    """A linear map of the last state of ``s_k = SANB_k(x_k + c_k s_{k-1})``, with ``s_{-1} = 0``.

    Args:
        first_weight: what ``x_0`` is multiplied by.
        sources: ``x_k``, one a block.
        shares: ``c_k``, one a block; that of the first is not read.
        blocks: parameters of each block.
        head: kernel and bias of the map.
        activation: a name in `ACTIVATIONS`.
        frozen: the first source is given no gradient, and the product for it is spared.
    """
    # What the blocks' output biases add to the states is the same for all items: it is carried along as one row, and
    # reaches the items by the bias at each bottleneck and by that of the head.
    row = blocks[0][3]
    biases = [blocks[0][1]]
    for share, (down, down_bias, _, up_bias) in zip(shares[1:], blocks[1:], strict=True):
        biases.append(down_bias + down @ (share * row))
        row = share * row + up_bias
    downs, ups = tuple(block[0] for block in blocks), tuple(block[2] for block in blocks)
    kernel, bias = head
    out = _chain(activation, frozen, first_weight, tuple(sources), shares, downs, tuple(biases), ups, kernel)
    return out + (kernel @ row + bias)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chain(activation, frozen, first_weight, sources, shares, downs, biases, ups, kernel):
    """`tower` of blocks without output biases, and of a head without one."""
    return _forward(activation, frozen, first_weight, sources, shares, downs, biases, ups, kernel)[0]


def _forward(activation, frozen, first_weight, sources, shares, downs, biases, ups, kernel):
    act = ACTIVATIONS[activation]
    product = sources[0] @ downs[0].T
    mixed, before = [first_weight * sources[0]], [first_weight * product + biases[0]]
    for rung in range(1, len(sources)):
        out = act(before[-1]) @ ups[rung - 1]
        mixed.append(sources[rung] + shares[rung] * (mixed[-1] + out))
        before.append(mixed[-1] @ downs[rung].T + biases[rung])
    # The last matrix from a bottleneck and the head's are multiplied together before they meet the data.
    out = mixed[-1] @ kernel.T + act(before[-1]) @ (ups[-1] @ kernel.T)
    saved = first_weight, sources[0], product, mixed, before, shares, downs, ups, kernel
    return out, saved


def _backward(activation, frozen, saved, by_out):
    first_weight, first, product, mixed, before, shares, downs, ups, kernel = saved
    act = ACTIVATIONS[activation]
    last = len(mixed) - 1
    made: list[list[Any]] = [[None] * (last + 1) for _ in range(5)]
    by_shares, by_downs, by_biases, by_ups, by_sources = made

    hidden, act_vjp = jax.vjp(act, before[last])
    through = ups[last] @ kernel.T
    (by_before,) = act_vjp(by_out @ through.T)
    by_through = hidden.T @ by_out
    by_ups[last] = by_through @ kernel
    both = jnp.concatenate([by_out, by_before], axis=1)
    by_mixed = both @ jnp.concatenate([kernel, downs[last]])
    by_both = transposed(both) @ mixed[last]
    by_kernel, by_downs[last] = by_both[: kernel.shape[0]] + by_through.T @ ups[last], by_both[kernel.shape[0] :]
    by_biases[last] = jnp.sum(by_before, axis=0)

    for rung in reversed(range(last)):
        by_sources[rung + 1], share = by_mixed, shares[rung + 1]
        hidden, act_vjp = jax.vjp(act, before[rung])
        at_bottleneck = by_mixed @ ups[rung].T
        # <by_mixed, side state>, with the side state as what it is the sum of.
        by_shares[rung + 1] = jnp.sum(by_mixed * mixed[rung]) + jnp.sum(at_bottleneck * hidden)
        by_ups[rung] = transposed(share * hidden) @ by_mixed
        (by_before,) = act_vjp(share * at_bottleneck)
        by_biases[rung] = jnp.sum(by_before, axis=0)
        if rung == 0 and frozen:
            by_first = share * jnp.sum(by_mixed * first) + jnp.sum(by_before * product)
            by_downs[0] = transposed(first_weight * by_before) @ first
            by_sources[0] = jnp.zeros_like(first)
        else:
            by_downs[rung] = transposed(by_before) @ mixed[rung]
            by_mixed = share * by_mixed + by_before @ downs[rung]
    if by_sources[0] is None:
        by_first = jnp.sum(by_mixed * first)
        by_sources[0] = jnp.zeros_like(first) if frozen else first_weight * by_mixed
    by_shares[0] = jnp.zeros_like(shares[0])
    return (
        by_first,
        tuple(by_sources),
        jnp.stack(by_shares),
        tuple(by_downs),
        tuple(by_biases),
        tuple(by_ups),
        by_kernel,
    )


_chain.defvjp(_forward, _backward)
