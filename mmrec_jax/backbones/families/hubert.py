"""HuBERT (arXiv 2106.07447): Wav2Vec2's encoder, trained in another way. Hidden states as in Wav2Vec2."""

from __future__ import annotations

from mmrec_jax.backbones.families.wav2vec2 import size, waveform_encoder
from mmrec_jax.backbones.family import Encoder, Family, refuse
from mmrec_jax.backbones.transformer import BlockMethod


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A HuBERT encoder from config.json."""
    refuse(config, "conv_pos_batch_norm", False, "batch normalisation before the positions is another computation")
    return waveform_encoder(config, "hubert.", bool(config.get("feat_proj_layer_norm", True)), method)


PRESETS = {
    "hubert-base": size("hubert", 768, 12, 12, large=False),
    "hubert-large": size("hubert", 1024, 24, 16, large=True),
    "hubert-xlarge": size("hubert", 1280, 48, 16, large=True),
}
FAMILIES = (Family("hubert", "audio", build, PRESETS),)
