"""Starts `jax.distributed` for a run of several processes, and watches over them until all have ended."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence

import mmrec_jax
from mmrec_jax.errors import ConfigError, HostError, Preempted, UserError
from mmrec_jax.parallel.config import ParallelConfig
from mmrec_jax.parallel.environment import ProcessGroup, detect, from_flags, tpu_metadata
from mmrec_jax.parallel.preemption import REQUEST
from mmrec_jax.parallel.rendezvous import meet
from mmrec_jax.parallel.watch import FINISHED, STOPPED, TOLD, Watch

_OWN_FLAGS = ("--process=", "--workdir=")
"""Flags that may differ among processes; a workdir may be mounted elsewhere."""


def find_group(
    environment: Mapping[str, str], coordinator: str | None, processes: int | None, process: int | None
) -> ProcessGroup | None:
    """The processes of this run by the flags, else by the environment; None for a process that is alone.

    Raises:
        ConfigError: flags or variables are incomplete.
    """
    if coordinator is not None or processes is not None or process is not None:
        return from_flags(coordinator, processes, process)
    return detect(environment, tpu_metadata(environment))


@contextlib.contextmanager
def joined(
    group: ProcessGroup | None,
    timeout: float,
    argv: Sequence[str],
    apart: threading.Event,
    stuck: float = ParallelConfig.stuck_seconds,
) -> Iterator[None]:
    """A run of several processes, from their meeting to their end. Does nothing for a process that is alone.

    While this lasts, a process that is lost ends all others, with code 69 and its name on their standard error.

    Args:
        group: the processes.
        timeout: seconds to wait for one that is late, or silent.
        argv: command line, which must be the same for all but for their numbers.
        apart: is set from the beginning until all came to a good end: a process that ends in between must do so without
            JAX's own way out, which waits for the others.
        stuck: seconds to wait for one that lives and does not advance.

    Raises:
        HostError: not all came, or JAX could not connect them.
    """
    if group is None:
        yield
        return
    apart.set()
    flags = [flag for flag in argv[1:] if not flag.startswith(_OWN_FLAGS)]
    told = hashlib.sha256("\n".join(flags).encode()).hexdigest()[:8]
    watch = Watch(meet(group, timeout, f"mmrec_jax {mmrec_jax.__version__}, flags {told}"), timeout, stuck, REQUEST)
    REQUEST.grouped = True
    watch.start()
    put_off_aborts()
    try:
        _start_jax(group, timeout)
        yield
    except Preempted as stopped:
        if watch.leave(STOPPED if stopped.at_boundary else TOLD) and stopped.at_boundary:
            apart.clear()
        raise
    except KeyboardInterrupt:
        watch.leave("interrupted")
        raise
    except Exception as error:
        if not isinstance(error, UserError):
            watch.settle()  # a collective breaks with an error of its own where a process is lost
        watch.leave(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        raise
    if watch.leave(FINISHED):
        apart.clear()


def put_off_aborts() -> None:
    """Lets an abort of this process take effect six seconds later, with its other threads going on meanwhile.

    JAX's client aborts the process at the moment its connection to the first process breaks, in a thread of C++ that is
    often faster than the watch, which then could not say who was lost. (Its callback for this can't be one of Python:
    jaxlib 0.10 fails to tell it the reason.) The handler is the C library's `sleep`, which takes the number of the
    signal for seconds.
    """
    if sys.platform not in ("linux", "darwin"):
        return
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def _start_jax(group: ProcessGroup, timeout: float) -> None:
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from `preemption`
    try:
        jax.distributed.initialize(
            group.address,
            group.count,
            group.index,
            list(group.local_devices) if group.local_devices else None,
            cluster_detection_method="deactivate",
            initialization_timeout=max(int(timeout), 1),
            # Later than the watch, which names the host.
            heartbeat_timeout_seconds=2 * max(int(timeout), 1) + 60,
        )
    except RuntimeError as error:
        raise HostError(
            f"JAX could not connect the {group.count} processes at {group.address}: {str(error).splitlines()[0]}"
        ) from error


def check_mode(group: ProcessGroup | None, mode: str, modes: Sequence[str]) -> None:
    """Whether a mode works in several processes.

    Raises:
        ConfigError: it does not.
    """
    if group is not None and mode not in modes:
        raise ConfigError(
            f"--mode={mode} works in one process, and {group.source} name {group.count}: start one, with --processes=1."
        )
