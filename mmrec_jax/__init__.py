"""Recommenders out of frozen foundation models: small trainable side parts in pure-functional JAX/Flax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmrec_jax.serving import Recommender

__version__ = "0.1.0"
__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports the public names on first use, so that `--help` and the light parts start fast."""
    if name == "Recommender":
        from mmrec_jax.serving import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
