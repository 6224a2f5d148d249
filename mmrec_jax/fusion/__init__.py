"""Many modality vectors to one item vector, with presence masks."""

from mmrec_jax.fusion.config import FusionConfig
from mmrec_jax.fusion.fusion import FUSIONS, fuse_modalities

__all__ = ["FUSIONS", "FusionConfig", "fuse_modalities"]
