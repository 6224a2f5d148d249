"""Which experts a vector is sent to, and where it lies in their buffers.

A *choice* is one of the `k` experts that a vector is sent to; a *slot* is a row of an expert's buffer, which has
`capacity` of them. Shapes do not depend on the values, so that a step is compiled once. What moves between vectors and
slots are gathers in both directions, forward and backward: scatters of rows are slow on all backends.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Choices:
    """The experts that vectors are sent to.

    Attributes:
        experts: of each choice, the largest share first; the number of experts where there is no vector to send.
        shares: weights of the experts' outputs; 0 where there is no vector.
    """

    experts: Int[Array, "*token choice"]
    shares: Float[Array, "*token choice"]


@struct.dataclass
class Slots:
    """Where choices lie in the experts' buffers, slot ``expert * capacity + position``.

    Attributes:
        of_choice: the slot of each choice; the number of slots for those that were dropped.
        choice: the choice (``token * k + rank``) that lies in each slot; the number of choices where it is empty.
    """

    of_choice: Int[Array, " choice"]
    choice: Int[Array, " slot"]


def choose(
    probabilities: Float[Array, "*token expert"], there: Bool[Array, "*token"], top_k: int, renormalise: bool
) -> Choices:
    """The `top_k` experts of the largest probability.

    Args:
        probabilities: softmax of the router's logits.
        there: whether there is a vector; others are sent nowhere.
        top_k: experts a vector.
        renormalise: the shares of a vector's choices sum to 1; otherwise they are the probabilities.
    """
    shares, experts = lax.top_k(probabilities, top_k)
    if renormalise:
        shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    return Choices(
        jnp.where(there[..., None], experts, probabilities.shape[-1]), jnp.where(there[..., None], shares, 0.0)
    )


def shares_of_all(choices: Choices, experts: int) -> Float[Array, "*token expert"]:
    """The shares with a 0 for each expert that was not chosen."""
    chosen = choices.experts[..., None] == jnp.arange(experts)
    return jnp.sum(jnp.where(chosen, choices.shares[..., None], 0.0), axis=-2)


def capacity_of(tokens: int, top_k: int, experts: int, factor: float) -> int:
    """Slots of an expert for so many vectors, present or not: `factor` times the even load, rounded up."""
    return min(tokens, math.ceil(factor * tokens * top_k / experts))


def slots(choices: Choices, experts: int, capacity: int) -> Slots:
    """Slots for the choices of one group of vectors.

    An expert that is asked for more than its capacity takes those of the largest shares, so that it does not depend on
    the order of the vectors which ones are dropped.

    Args:
        choices: of vectors along one axis.
        experts: how many there are.
        capacity: slots of each.
    """
    asked = choices.experts.reshape(-1)
    count = asked.shape[0]
    by_expert, _, order = lax.sort(
        (asked, -lax.stop_gradient(choices.shares).reshape(-1), lax.iota(jnp.int32, count)), num_keys=2
    )
    starts = jnp.searchsorted(by_expert, jnp.arange(experts + 1, dtype=asked.dtype)).astype(jnp.int32)
    position = lax.iota(jnp.int32, count) - starts[by_expert]
    taken = (by_expert < experts) & (position < capacity)
    of_sorted = jnp.where(taken, by_expert * capacity + position, experts * capacity)
    place = starts[:-1, None] + jnp.arange(capacity, dtype=jnp.int32)
    return Slots(
        of_choice=jnp.zeros(count, jnp.int32).at[order].set(of_sorted, unique_indices=True),
        choice=jnp.where(place < starts[1:, None], order.at[place].get(mode="clip"), count).reshape(-1),
    )


def joined(found: Slots) -> Slots:
    """The slots of several groups (a leading axis) as those of one: batched gathers are far slower on CPU."""

    def numbered(index: Int[Array, "group entry"], size: int) -> Int[Array, " entry"]:
        groups = index.shape[0]
        first = size * jnp.arange(groups, dtype=jnp.int32)[:, None]
        return jnp.where(index < size, first + index, groups * size).reshape(-1)

    return Slots(numbered(found.of_choice, found.choice.shape[1]), numbered(found.choice, found.of_choice.shape[1]))


@jax.custom_vjp
def rows(
    x: Float[Array, "row width"], index: Int[Array, " out"], back: Int[Array, "row reader"]
) -> Float[Array, "out width"]:
    """``x[index]``, zeros where the index is the number of rows.

    Args:
        x: rows.
        index: which of them.
        back: the places in `index` that name each row; the length of `index` where there is none. The gradient of `x`
            is read by it.
    """
    return x.at[index].get(mode="fill", fill_value=0)


def _rows_forward(x, index, back):
    return rows(x, index, back), back


def _rows_backward(back, gradient):
    return jnp.sum(gradient.at[back].get(mode="fill", fill_value=0), axis=1), None, None


rows.defvjp(_rows_forward, _rows_backward)


def dispatch(x: Float[Array, "token width"], found: Slots) -> Float[Array, "slot width"]:
    """The experts' buffers: each slot holds the vector of its choice, an empty one zeros."""
    tokens, choices = x.shape[0], found.of_choice.shape[0]
    top_k = choices // tokens
    token = jnp.where(found.choice < choices, found.choice // top_k, tokens)
    return rows(x, token, found.of_choice.reshape(tokens, top_k))


def combine(
    buffers: Float[Array, "slot width"], shares: Float[Array, "token choice"], found: Slots
) -> Float[Array, "token width"]:
    """The outputs of each vector's experts, weighted by their shares; dropped choices add nothing."""
    outputs = rows(buffers, found.of_choice, found.choice[:, None])
    return jnp.sum(shares[..., None] * outputs.reshape(*shares.shape, -1), axis=-2)
