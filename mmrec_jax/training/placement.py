"""Where the arrays of a training lie: what the step and the loop know of devices."""

from __future__ import annotations

from typing import Any, Protocol

import jax


class Placement(Protocol):
    """Puts trees of arrays where the step reads them, and brings them back."""

    def state(self, tree: Any) -> Any:
        """Host arrays that a step changes, or reads beside what it changes: parameters, and what belongs to them."""

    def frozen(self, frozen: Any) -> Any:
        """What is read and never trained."""

    def batch(self, batch: Any) -> Any:
        """A batch of the stream."""

    def readable(self, tree: Any) -> Any:
        """The same arrays, each whole in this process."""


class OneDevice:
    """The first device of the process has everything."""

    def state(self, tree: Any) -> Any:
        """See `Placement`."""
        return jax.device_put(tree)

    def frozen(self, frozen: Any) -> Any:
        """See `Placement`."""
        return jax.device_put(frozen)

    def batch(self, batch: Any) -> Any:
        """See `Placement`."""
        return jax.device_put(batch)

    def readable(self, tree: Any) -> Any:
        """See `Placement`."""
        return tree
