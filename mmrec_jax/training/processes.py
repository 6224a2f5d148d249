"""One run in several processes: who writes, and how they wait for each other and agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

from mmrec_jax import errors

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
    """Calls a function in the first process, and then, when what it has left on disk is there, in the others.

    Raises:
        UserError: the first process's mistake, in all of them alike, so that a caller who handles it does so in all.
    """
    if not several():
        return make()
    if not writes():
        kind, message = _text_of_first("", what)
        if kind:
            raise getattr(errors, kind, errors.UserError)(message)
        return make()
    try:
        value = make()
    except errors.UserError as error:
        _text_of_first(f"{type(error).__name__}\n{error}", what)
        raise
    _text_of_first("\n", what)
    return value


def _text_of_first(text: str, what: str) -> list[str]:
    """The first process's text in all, cut at the end of its first line; `what` must be the same in all."""
    from jax.experimental.multihost_utils import broadcast_one_to_all

    wait_for_all(what)
    written = np.frombuffer(text.encode(), np.uint8)
    (length,) = as_first_says([len(written)])
    told = broadcast_one_to_all(np.resize(written, length) if len(written) else np.zeros(length, np.uint8))
    return bytes(np.asarray(told, np.uint8)).decode().split("\n", 1)
