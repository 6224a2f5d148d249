"""Small trainable parts beside a backbone."""

from mmrec_jax.adapters.sanb import sanb
from mmrec_jax.adapters.towers import CrossModalTowers, TowerConfig, TowerSpec

__all__ = ["CrossModalTowers", "TowerConfig", "TowerSpec", "sanb"]
