"""User encoders: item vectors of a history to one user vector a position."""

from mmrec_jax.sequence.sasrec import SasRec, SasRecConfig

__all__ = ["SasRec", "SasRecConfig"]
