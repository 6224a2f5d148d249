"""Frozen encoders as pure Flax modules, their files and preprocessing. Extraction of catalogues is in `store/`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig

if TYPE_CHECKING:
    from mmrec_jax.backbones.backbone import Backbone, load
    from mmrec_jax.backbones.family import Tokens
    from mmrec_jax.backbones.pooling import pool
    from mmrec_jax.backbones.registry import find_family, preset

__all__ = ["Backbone", "ExtractionConfig", "ModalityConfig", "Tokens", "find_family", "load", "pool", "preset"]

# Configs are read by every command, also by those that never touch an encoder: JAX is imported when first needed.
_LAZY = {
    "Backbone": "backbone",
    "load": "backbone",
    "Tokens": "family",
    "pool": "pooling",
    "find_family": "registry",
    "preset": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
