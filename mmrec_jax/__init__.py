"""Recommenders out of frozen foundation models: small trainable side parts in pure-functional JAX/Flax."""

__version__ = "0.1.0"
