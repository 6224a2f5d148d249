"""Many modality vectors to one item vector, with presence masks."""

from mmrec_jax.fusion.fusion import FUSIONS, FusionConfig, fuse_modalities

__all__ = ["FUSIONS", "FusionConfig", "fuse_modalities"]
