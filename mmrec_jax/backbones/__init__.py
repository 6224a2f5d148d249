"""Frozen encoders as pure Flax modules, their files, their preprocessing, and extraction of hidden states."""

from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig

__all__ = ["ExtractionConfig", "ModalityConfig"]
