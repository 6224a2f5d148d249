"""Memory pages of a CPU run: those of freed buffers are kept for the next step, those of compilation are given back.

A step's buffers are one block of tens of megabytes. Beyond 32 MB the C library returns such a block to the system when
it is freed and asks for it anew in the next step, and the system clears every page of it again: 7,000 page faults and a
sixth of the processor time in a step of the main job.
"""

from __future__ import annotations

import ctypes
import sys

import jax

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # parameters of glibc's mallopt


def keep_freed_pages() -> bool:
    """Lets freed blocks of any size stay with the process; only where JAX runs on the CPU of a glibc system.

    Returns:
        Whether the C library was told.
    """
    library = _glibc()
    if library is None or jax.default_backend() != "cpu":
        return False
    # A thread's own heap comes in pieces of 64 MB, which are given back when they are empty unless they are padding.
    settings = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
    told = [library.mallopt(parameter, value) for parameter, value in settings.items()]
    return all(told)


def release_freed_pages() -> None:
    """Gives back what compilation has freed."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
