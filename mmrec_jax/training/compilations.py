"""Counts XLA compilations of this process, so that a step that compiles again does not go unseen."""

from __future__ import annotations

import functools

import jax

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompilationCounter:
    """Number of programs that were compiled (or read from the persistent cache) since it was made."""

    def __init__(self):
        self.count = 0

    def __call__(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Listener of `jax.monitoring`."""
        if event == _COMPILE_EVENT:
            self.count += 1


@functools.cache
def process_counter() -> CompilationCounter:
    """The one counter of this process; registered with JAX when first asked for."""
    counter = CompilationCounter()
    jax.monitoring.register_event_duration_secs_listener(counter)
    return counter
