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
    refuse,
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
    r"embeddings\.position_ids": "a constant: 0, 1, 2, ...",
}


class Bert(nn.Module):
    """Token ids to hidden states; every token is of type 0 (one text an item)."""

    config: TransformerConfig
    vocabulary: int
    max_positions: int
    token_types: int
    method: BlockMethod | None = None

    def setup(self) -> None:
        self.words = nn.Embed(self.vocabulary, self.config.width)
        self.positions = nn.Embed(self.max_positions, self.config.width)
        self.types = nn.Embed(self.token_types, self.config.width)
        self.norm = make_norm(self.config)
        self.transformer = Transformer(self.config, self.method)

    def __call__(self, tokens: Tokens) -> tuple[Float[Array, "batch token width"], ...]:
        length = tokens.ids.shape[1]
        if length > self.max_positions:
            raise ValueError(f"{length} tokens, but the encoder has positions for {self.max_positions}")
        x = self.words(tokens.ids) + self.types.embedding[0] + self.positions.embedding[:length]
        return self.transformer(self.norm(x), tokens.mask)

    def final_norm(self, state: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        """The last hidden state as it is: BERT normalises inside its blocks."""
        return jnp.asarray(state)


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A BERT encoder from config.json."""
    refuse(config, "position_embedding_type", "absolute", "relative positions are another computation")
    refuse(config, "is_decoder", False, "a causal mask is another computation")
    sizes = check_heads(
        TransformerConfig(
            width=integer(config, "hidden_size"),
            depth=integer(config, "num_hidden_layers"),
            heads=integer(config, "num_attention_heads"),
            hidden=integer(config, "intermediate_size"),
            activation=activation(config, "gelu"),
            norm="post",
            norm_epsilon=float(config.get("layer_norm_eps", 1e-12)),
        )
    )
    module = Bert(
        sizes,
        vocabulary=integer(config, "vocab_size"),
        max_positions=integer(config, "max_position_embeddings", 512),
        token_types=integer(config, "type_vocab_size", 2),
        method=method,
    )
    weights = [
        Weight("words/embedding", "embeddings.word_embeddings.weight"),
        Weight("positions/embedding", "embeddings.position_embeddings.weight"),
        Weight("types/embedding", "embeddings.token_type_embeddings.weight"),
        *layer_norm("norm", "embeddings.LayerNorm"),
        *block_weights(sizes, "encoder.layer.{layer}.", BLOCK),
    ]
    return Encoder(
        module,
        sizes,
        WeightMap(tuple(weights), IGNORED, prefix="bert."),
        example=Tokens(jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), bool)),
        vocabulary=module.vocabulary,
        max_tokens=module.max_positions,
    )


FAMILIES = (Family("bert", "text", build),)
