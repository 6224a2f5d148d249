"""One run in several processes: who writes, and how they wait for each other and agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

T = TypeVar("T")


def several() -> bool:
    """Whether other processes take part. Asks no device, so that it may be called before any is used."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def writes() -> bool:
    """Whether this process is the one that writes what there is one of: checkpoints, logs, tables."""
    return not several() or jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns once every process is here; `what` must be the same in all."""
    if several():
        from jax.experimental.multihost_utils import sync_global_devices

        with jax.transfer_guard("allow"):
            sync_global_devices(what)


def as_first_says(numbers: Sequence[int]) -> list[int]:
    """The first process's numbers, in all."""
    if not several():
        return list(numbers)
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return [int(number) for number in broadcast_one_to_all(np.asarray(numbers, np.int32))]


def first_alone(make: Callable[[], T], what: str) -> T:
    """Calls a function in the first process, and then, when what it has left on disk is there, in the others."""
    if not writes():
        wait_for_all(what)
    value = make()
    if writes():
        wait_for_all(what)
    return value
