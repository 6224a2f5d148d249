"""User encoders: item vectors of a history to one user vector a position."""

from mmrec_jax.sequence.gru import Gru, GruConfig
from mmrec_jax.sequence.sasrec import SasRec, SasRecConfig

__all__ = ["Gru", "GruConfig", "SasRec", "SasRecConfig", "user_encoder"]


def user_encoder(config: SasRecConfig | GruConfig) -> SasRec | Gru:
    """The module of a config."""
    return SasRec(config) if isinstance(config, SasRecConfig) else Gru(config)
