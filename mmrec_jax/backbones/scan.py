"""Blocks that are alike as one loop over their stacked parameters: a program of one block to compile, however deep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mmrec_jax.types import Params

State = Float[Array, "batch token width"]


def scanned(
    block: Callable[[int, Params, State, Array | None], State],
    params: Sequence[Params],
    x: State,
    key: Array | None,
    remat: bool,
    apart: bool,
) -> list[State]:
    """What leaves each of some blocks, one after another.

    Neighbours whose parameters have the same names, shapes and types become one `lax.scan`.

    Args:
        block: (number of a block like it, its parameters, what enters it, its key) to what leaves it.
        params: of each block.
        x: what enters the first one.
        key: of dropout; None where there is none.
        remat: whether the backward pass computes each block again.
        apart: whether the last block differs from the others though its parameters do not.
    """
    numbers = range(len(params))
    alike = [(str(jax.tree.map(_form, tree)), apart and n == len(params) - 1) for n, tree in enumerate(params)]
    states: list[State] = []
    for _, group in groupby(numbers, key=alike.__getitem__):
        members = list(group)
        first = members[0]
        keys: Any = None if key is None else jnp.stack([jax.random.fold_in(key, n) for n in members])

        def one(x: State, given: Any, first: int = first) -> State:
            return block(first, given[0], x, given[1])

        one = jax.checkpoint(one, prevent_cse=len(members) == 1) if remat else one
        if len(members) == 1:
            x = one(x, (params[first], None if keys is None else keys[0]))
            states.append(x)
            continue
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[n] for n in members))

        def kept(x: State, given: Any, one: Callable = one) -> tuple[State, State]:
            x = one(x, given)
            return x, x

        x, made = lax.scan(kept, x, (stacked, keys))
        states += list(made)
    return states


def _form(leaf: Array) -> str:
    return f"{leaf.shape}{leaf.dtype}"
