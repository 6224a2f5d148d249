"""Rows that a device of a mesh needs of others: those alone are sent, to it alone.

Inside `jax.shard_map`. Each device asks each other one for the rows that it needs of it, in messages of a fixed length;
where a device needs more of one other than fit, all go round again, as often as the neediest pair wants. So nothing has
to be known of the data, and nothing is left out. Gradients go the same way back.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

_MULTIPLE = 8


def message_rows(needed: int, parts: int, rows: int) -> int:
    """How many rows to ask each of `parts` devices for at once, of `needed` in all that lie anywhere with the same
    chance: four standard deviations more than the mean, and no more than the `rows` that each has."""
    mean = needed / parts
    return min(rows, math.ceil((mean + 4 * math.sqrt(mean)) / _MULTIPLE) * _MULTIPLE)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def rows_of_others(
    own: Float[Array, "own width"],
    places: Int[Array, " needed"],
    axes: tuple[str, ...],
    most: int,
    dtype: str = "float32",
) -> Float[Array, "needed width"]:
    """Rows of an array that is split over devices.

    Args:
        own: this device's part; the parts lie one after another in the order of `axes`.
        places: which rows of the whole are wanted, ascending; zeros for those past the end, which come last.
        axes: of the mesh, along which the array is split.
        most: rows in a message, see `message_rows`.
        dtype: in which rows and their gradients are sent.
    """
    return _forward(own, places, axes, most, dtype)[0]


def _forward(own, places, axes, most, dtype):
    exchange = _Exchange(places, own.shape[0], axes, most)

    def received(turn, found):
        asked, place, inside = exchange.turn(turn)
        sent = own.at[asked].get(mode="fill", fill_value=0).astype(dtype)
        rows = exchange.swapped(sent).reshape(-1, own.shape[1])[place].astype(own.dtype)
        return jnp.where(inside[:, None], rows, found)

    found = exchange.over_turns(received, jnp.zeros((len(places), own.shape[1]), own.dtype))
    return found, (jnp.zeros((own.shape[0], 0), own.dtype), places)


def _backward(axes, most, dtype, saved, by_rows):
    like, places = saved
    exchange = _Exchange(places, like.shape[0], axes, most)

    def returned(turn, by_own):
        asked, place, inside = exchange.turn(turn)
        place = jnp.where(inside, place, exchange.parts * most)
        sent = jnp.zeros((exchange.parts * most, by_rows.shape[1]), dtype)
        sent = sent.at[place].set(by_rows.astype(dtype), mode="drop").reshape(exchange.parts, most, -1)
        return by_own.at[asked].add(exchange.swapped(sent).astype(by_own.dtype), mode="drop")

    return exchange.over_turns(returned, jnp.zeros((like.shape[0], by_rows.shape[1]), like.dtype)), None


rows_of_others.defvjp(_forward, _backward)


class _Exchange:
    """Who asks whom for what."""

    def __init__(self, places: Int[Array, " needed"], rows: int, axes: tuple[str, ...], most: int):
        self._axes, self._rows, self._most = axes, rows, most
        self.parts = math.prod(lax.axis_size(axis) for axis in axes)
        # The rows past the end are zeros, after others: nobody is asked for them.
        real = jnp.concatenate([jnp.ones(1, bool), places[1:] > places[:-1]])
        self._owner = jnp.where(real, places // rows, self.parts)
        self._local = places % rows
        first = jnp.searchsorted(self._owner, jnp.arange(self.parts + 1))
        self._rank = jnp.arange(len(places)) - first[self._owner]
        last = jnp.max(jnp.where(real, self._rank, 0))
        self._turns = lax.pmax(last, axes) // most + 1

    def turn(self, turn) -> tuple[Int[Array, "part most"], Int[Array, " needed"], Bool[Array, " needed"]]:
        """What each device asks this one for, one past the end for nothing; and where in the answers each row is that
        this one wants, and whether it is in those of this turn."""
        slot = self._rank - turn * self._most
        inside = (slot >= 0) & (slot < self._most) & (self._owner < self.parts)
        place = jnp.where(inside, self._owner * self._most + slot, 0)
        wanted = jnp.full(self.parts * self._most, self._rows, jnp.int32)
        wanted = wanted.at[jnp.where(inside, place, self.parts * self._most)].set(
            self._local.astype(jnp.int32), mode="drop"
        )
        return self.swapped(wanted.reshape(self.parts, self._most)), place, inside

    def swapped(self, blocks: Array) -> Array:
        """Block i of this device to device i, and that of each for this one in its place."""
        return lax.all_to_all(blocks, self._axes, 0, 0)

    def over_turns(self, body, start: Array) -> Array:
        """`body(turn, found)` of each turn."""

        def once(carried):
            turn, found = carried
            return turn + 1, body(turn, found)

        start = lax.pcast(start, self._axes, to="varying")
        return lax.while_loop(lambda carried: carried[0] < self._turns, once, (jnp.int32(0), start))[1]
