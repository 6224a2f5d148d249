"""Few lengths for many: padding to one of them keeps the number of compiled shapes small."""

from __future__ import annotations


def padded_length(length: int, step: int = 8) -> int:
    """The shortest allowed length that holds `length`: steps of 1, 2, ..., 8, 10, ..., 16, 20, ... times `step`."""
    while step * 8 < length:
        step *= 2
    return -(-length // step) * step
