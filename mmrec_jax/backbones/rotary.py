"""Rotary positions (arXiv 2104.09864): queries and keys turned by angles that grow with their position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclass(frozen=True)
class Rotary:
    """How fast the pairs of features turn.

    Attributes:
        theta: the slowest pair turns by about 1 / theta a token.
        scaling: "none"; "linear" divides every angle by `factor`; "llama3" divides those of pairs that turn
            less than `low_turns` times within `trained_positions`, keeps those that turn more than `high_turns`
            times, and goes over smoothly in between.
        factor: of the scaling.
        low_turns, high_turns, trained_positions: of the "llama3" scaling.
    """

    theta: float = 10000.0
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_turns: float = 1.0
    high_turns: float = 4.0
    trained_positions: int = 8192


def turning_rates(rotary: Rotary, head_width: int) -> Float[np.ndarray, " pair"]:
    """Radians a token for each of the head_width / 2 pairs of features."""
    exponents = np.arange(0, head_width, 2, dtype=np.float32) / head_width
    rates = (1.0 / np.float32(rotary.theta) ** exponents).astype(np.float32)
    if rotary.scaling == "none":
        return rates
    if rotary.scaling == "linear":
        return (rates / rotary.factor).astype(np.float32)
    turns = rotary.trained_positions * rates / (2 * np.pi)
    kept = np.clip((turns - rotary.low_turns) / (rotary.high_turns - rotary.low_turns), 0, 1)
    return (rates * (kept + (1 - kept) / rotary.factor)).astype(np.float32)


Turn = tuple[Float[Array, "token pair"], Float[Array, "token pair"]]
"""Cosines and sines of each position's angles."""


def turn_of_positions(rotary: Rotary, head_width: int, length: int) -> Turn:
    """The angles' cosines and sines, float32, for positions 0, 1, ..."""
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * turning_rates(rotary, head_width)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "batch token head feature"], turn: Turn) -> Float[Array, "batch token head feature"]:
    """Turns feature i together with feature i + head_width / 2, in float32."""
    cosine, sine = (table[:, None, :] for table in turn)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)
