"""Qwen2 (arXiv 2407.10671): Llama's layout with biases on query, key and value. Hidden states as in Llama."""

from __future__ import annotations

from mmrec_jax.backbones.families.llama import decoder_encoder
from mmrec_jax.backbones.family import Encoder, Family, refuse
from mmrec_jax.backbones.transformer import BlockMethod


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A Qwen2 encoder from config.json."""
    refuse(config, "use_sliding_window", False, "attention to the last tokens only is another computation")
    return decoder_encoder(config, frozenset({"query", "key", "value"}), method)


def _size(width: int, depth: int, heads: int, key_heads: int, hidden: int, vocabulary: int, epsilon: float) -> dict:
    return {
        "model_type": "qwen2",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": hidden,
        "vocab_size": vocabulary,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "rms_norm_eps": epsilon,
        "rope_theta": 1000000.0,
    }


PRESETS = {
    "qwen2-0.5b": _size(896, 24, 14, 2, 4864, 151936, 1e-6),
    "qwen2-1.5b": _size(1536, 28, 12, 2, 8960, 151936, 1e-6),
    "qwen2-7b": _size(3584, 28, 28, 4, 18944, 152064, 1e-6),
    "qwen2-72b": _size(8192, 80, 64, 8, 29568, 152064, 1e-5),
}
FAMILIES = (Family("qwen2", "text", build, PRESETS),)
