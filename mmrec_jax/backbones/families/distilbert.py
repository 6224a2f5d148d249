"""DistilBERT (arXiv 1910.01108): BERT with half the blocks and without token types. Hidden states as in BERT."""

from __future__ import annotations

from mmrec_jax.backbones.families.bert import IGNORED, Bert, text_encoder
from mmrec_jax.backbones.family import Encoder, Family, activation, block_weights, check_heads, integer
from mmrec_jax.backbones.transformer import BlockMethod, TransformerConfig

BLOCK = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "feed_forward_norm": "output_layer_norm",
}
HEADS = {
    r"vocab_(transform|layer_norm|projector)\..*": "head of masked language modelling",
    r"pre_classifier\..*": "head of a task",
}


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A DistilBERT encoder from config.json."""
    sizes = check_heads(
        TransformerConfig(
            width=integer(config, "dim"),
            depth=integer(config, "n_layers"),
            heads=integer(config, "n_heads"),
            hidden=integer(config, "hidden_dim"),
            activation=activation(config, "gelu", key="activation"),
            norm="post",
            norm_epsilon=1e-12,
        )
    )
    module = Bert(
        sizes,
        vocabulary=integer(config, "vocab_size"),
        max_positions=integer(config, "max_position_embeddings", 512),
        token_types=0,
        method=method,
    )
    blocks = block_weights(sizes, "transformer.layer.{layer}.", BLOCK)
    return text_encoder(module, blocks, IGNORED | HEADS, "distilbert.")


def _size(vocabulary: int) -> dict:
    return {
        "model_type": "distilbert",
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "activation": "gelu",
    }


PRESETS = {
    "distilbert-base-uncased": _size(30522),
    "distilbert-base-cased": _size(28996),
    "distilbert-base-multilingual-cased": _size(119547),
}
FAMILIES = (Family("distilbert", "text", build, PRESETS),)
