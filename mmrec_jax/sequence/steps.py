"""Between the steps of a batch, padding left out, and the slots of its histories, padding included."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class BatchPart:
    """Consecutive rows of a batch: the number of the first one, and how many the whole batch has."""

    first: Int[Array, ""] | int
    rows: int


def spread(x: Float[Array, "step width"], steps: Int[Array, " step"] | None, slots: int) -> Float[Array, "slot width"]:
    """Vectors of the steps at their slots, zeros at the others; `x` itself where all slots are steps (None)."""
    return x if steps is None else _rearranged(x, _inverse(steps, slots), steps)


def collect(x: Float[Array, "slot width"], steps: Int[Array, " step"] | None) -> Float[Array, "step width"]:
    """Vectors of the slots at which the steps are, zeros for those that stand for nothing."""
    return x if steps is None else _rearranged(x, steps, _inverse(steps, x.shape[0]))


def _inverse(steps: Int[Array, " step"], slots: int) -> Int[Array, " slot"]:
    """Which step is at each slot; one past the last where none is."""
    return jnp.full(slots, steps.shape[0]).at[steps].set(jnp.arange(steps.shape[0]), mode="drop")


@jax.custom_vjp
def _rearranged(
    x: Float[Array, "old width"], there: Int[Array, " new"], back: Int[Array, " old"]
) -> Float[Array, "new width"]:
    """``x[there]``, zeros where an index lies beyond the end. `back` is the inverse, by which the gradient is looked up
    too, in place of being added up."""
    return x.at[there].get(mode="fill", fill_value=0)


_rearranged.defvjp(
    lambda x, there, back: (_rearranged(x, there, back), (there, back)),
    lambda saved, grad: (_rearranged(grad, saved[1], saved[0]), None, None),
)
