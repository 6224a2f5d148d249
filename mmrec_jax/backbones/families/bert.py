"""BERT (arXiv 1810.04805) and MiniLM in its layout: post-norm text encoders with learned positions.

Hidden state 0 is the normalised sum of word, position and type embeddings; state k is what block k gives,
after its last normalisation, so that state `depth` is transformers' last_hidden_state.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from mmrec_jax.backbones.family import (
    Encoder,
    Family,
    Tokens,
    activation,
    block_weights,
    check_heads,
    integer,
    number,
    refuse,
    token_example,
)
from mmrec_jax.backbones.transformer import BlockMethod, Transformer, TransformerConfig, make_norm
from mmrec_jax.backbones.weights import Weight, WeightMap, layer_norm

BLOCK = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}
IGNORED = {
    r"pooler\..*": "a head for sentence pairs; hidden states are taken before it",
    r"cls\..*": "heads of the pre-training tasks",
    r"classifier\..*": "head of a task",
    r"qa_outputs\..*": "head of a task",
    r"embeddings\.position_ids": "a constant: 0, 1, 2, ...",
    r"embeddings\.token_type_ids": "a constant: zeros",
}
RENAMED = {r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"}


class Bert(nn.Module):
    """Token ids to hidden states; every token is of type 0 (one text an item).

    Attributes:
        config: the core's sizes.
        vocabulary: token ids.
        max_positions: rows of the table of positions.
        token_types: types of tokens; 0 where the family has none.
        padding_position: the row for padding, after which a text's tokens count on; None counts from 0.
        method: applied at the blocks' places.
    """

    packs = True  # takes rows of several texts

    config: TransformerConfig
    vocabulary: int
    max_positions: int
    token_types: int
    padding_position: int | None = None
    method: BlockMethod | None = None

    def setup(self) -> None:
        self.words = nn.Embed(self.vocabulary, self.config.width)
        self.positions = nn.Embed(self.max_positions, self.config.width)
        if self.token_types:
            self.types = nn.Embed(self.token_types, self.config.width)
        self.norm = make_norm(self.config)
        self.transformer = Transformer(self.config, self.method)

    @property
    def longest(self) -> int:
        """How many tokens a text may have."""
        return self.max_positions - (0 if self.padding_position is None else self.padding_position + 1)

    def __call__(self, tokens: Tokens) -> tuple[Float[Array, "batch token width"], ...]:
        length = tokens.ids.shape[1]
        if tokens.texts is None and length > self.longest:
            raise ValueError(f"{length} tokens, but the encoder has positions for {self.longest}")
        x = self.words(tokens.ids)
        if self.token_types:
            x = x + self.types.embedding[0]
        if self.padding_position is not None:
            counted = jnp.cumsum(tokens.mask, axis=1) if tokens.texts is None else tokens.positions + 1
            x = x + self.positions(self.padding_position + tokens.mask * counted)
        elif tokens.texts is None:
            x = x + self.positions.embedding[:length]
        else:
            x = x + self.positions(tokens.positions)
        return self.transformer(self.norm(x), tokens.mask if tokens.texts is None else tokens.texts)

    def final_norm(self, state: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        """The last hidden state as it is: BERT normalises inside its blocks."""
        return jnp.asarray(state)


def text_encoder(module: Bert, blocks: list[Weight], ignored: dict[str, str], prefix: str) -> Encoder:
    """An encoder with BERT's embeddings: the family says the module, the weights of the blocks and what to ignore."""
    weights = [
        Weight("words/embedding", "embeddings.word_embeddings.weight"),
        Weight("positions/embedding", "embeddings.position_embeddings.weight"),
        *layer_norm("norm", "embeddings.LayerNorm"),
        *blocks,
    ]
    if module.token_types:
        weights.append(Weight("types/embedding", "embeddings.token_type_embeddings.weight"))
    return Encoder(
        module,
        module.config,
        WeightMap(tuple(weights), ignored, prefix, RENAMED),
        example=token_example(),
        vocabulary=module.vocabulary,
        max_tokens=module.longest,
    )


def read_sizes(config: dict) -> TransformerConfig:
    """The core's sizes by the names that BERT and RoBERTa use.

    Raises:
        BackboneError: config.json asks for another computation, or its numbers do not fit together.
    """
    refuse(config, "position_embedding_type", "absolute", "relative positions are another computation")
    refuse(config, "is_decoder", False, "a causal mask is another computation")
    return check_heads(
        TransformerConfig(
            width=integer(config, "hidden_size"),
            depth=integer(config, "num_hidden_layers"),
            heads=integer(config, "num_attention_heads"),
            hidden=integer(config, "intermediate_size"),
            activation=activation(config, "gelu"),
            norm="post",
            norm_epsilon=number(config, "layer_norm_eps", 1e-12),
        )
    )


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A BERT encoder from config.json."""
    sizes = read_sizes(config)
    module = Bert(
        sizes,
        vocabulary=integer(config, "vocab_size"),
        max_positions=integer(config, "max_position_embeddings", 512),
        token_types=integer(config, "type_vocab_size", 2),
        method=method,
    )
    return text_encoder(module, block_weights(sizes, "encoder.layer.{layer}.", BLOCK), IGNORED, "bert.")


def _size(width: int, depth: int, heads: int, vocabulary: int) -> dict:
    return {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
    }


PRESETS = {
    "bert-base-uncased": _size(768, 12, 12, 30522),
    "bert-large-uncased": _size(1024, 24, 16, 30522),
    "bert-base-cased": _size(768, 12, 12, 28996),
    "bert-base-multilingual-cased": _size(768, 12, 12, 119547),
    "all-MiniLM-L6-v2": _size(384, 6, 12, 30522),
    "all-MiniLM-L12-v2": _size(384, 12, 12, 30522),
}
FAMILIES = (Family("bert", "text", build, PRESETS),)
