"""RoBERTa (arXiv 1907.11692) and those in its layout: CodeBERT, XLM-R (arXiv 1911.02116), CamemBERT.

Hidden states as in BERT. What differs: a text's positions begin after the row that has the padding token's id.
"""

from __future__ import annotations

from mmrec_jax.backbones.families.bert import BLOCK, IGNORED, Bert, read_sizes, text_encoder
from mmrec_jax.backbones.family import Encoder, Family, block_weights, integer
from mmrec_jax.backbones.transformer import BlockMethod

HEADS = {r"lm_head\..*": "head of masked language modelling"}


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A RoBERTa encoder from config.json."""
    sizes = read_sizes(config)
    module = Bert(
        sizes,
        vocabulary=integer(config, "vocab_size"),
        max_positions=integer(config, "max_position_embeddings", 512),
        token_types=integer(config, "type_vocab_size", 2),
        padding_position=integer(config, "pad_token_id", 1, least=0),
        method=method,
    )
    blocks = block_weights(sizes, "encoder.layer.{layer}.", BLOCK)
    return text_encoder(module, blocks, IGNORED | HEADS, "roberta.")


def _size(model_type: str, width: int, depth: int, heads: int, vocabulary: int) -> dict:
    return {
        "model_type": model_type,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": vocabulary,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


ROBERTA = {
    "roberta-base": _size("roberta", 768, 12, 12, 50265),
    "roberta-large": _size("roberta", 1024, 24, 16, 50265),
    "codebert-base": _size("roberta", 768, 12, 12, 50265),
}
XLM_ROBERTA = {
    "xlm-roberta-base": _size("xlm-roberta", 768, 12, 12, 250002),
    "xlm-roberta-large": _size("xlm-roberta", 1024, 24, 16, 250002),
}
CAMEMBERT = {
    "camembert-base": _size("camembert", 768, 12, 12, 32005),
    "camembert-large": _size("camembert", 1024, 24, 16, 32005),
}
FAMILIES = (
    Family("roberta", "text", build, ROBERTA),
    Family("xlm-roberta", "text", build, XLM_ROBERTA),
    Family("camembert", "text", build, CAMEMBERT),
)
