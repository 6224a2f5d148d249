"""int8 hidden states: one scale a vector."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int8


def quantise(
    states: Float[np.ndarray, "item layer width"],
) -> tuple[Int8[np.ndarray, "item layer width"], Float[np.ndarray, "item layer"]]:
    """Symmetric rounding to -127..127: state is about value * scale, scale = max |state| / 127 of the vector.

    The error is at most scale / 2 in each feature. A vector of zeros has scale 0.
    """
    scales = (np.abs(states).max(axis=-1) / 127).astype(np.float32)
    safe = np.where(scales > 0, scales, 1)
    values = np.rint(states / safe[..., None]).clip(-127, 127).astype(np.int8)
    return values, scales
