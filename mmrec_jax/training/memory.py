"""The largest memory that training takes."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import jax

from mmrec_jax.training.pages import release_freed_pages


def peak_memory_bytes() -> int:
    """Largest memory so far: of the first accelerator if there is one, else of this process since
    `restart_peak_memory`."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    try:
        # Not `ru_maxrss`, where Linux counts the memory of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def restart_peak_memory() -> None:
    """Lets the peak of the process begin anew, without what compilation has freed; Linux only.

    A program that is compiled takes more memory than the same one from the cache, which says nothing about training.
    """
    release_freed_pages()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
