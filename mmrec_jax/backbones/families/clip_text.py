"""CLIP's text tower (arXiv 2103.00020): pre-norm with a causal mask and learned positions.

Hidden state 0 is the sum of word and position embeddings; state k is what block k gives. The final normalisation
comes after the last hidden state; `final_norm` applies it. The end-of-text token sees the whole text and is a
text's last token: pooling "last" takes it.
"""

from __future__ import annotations

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
    norm_weights,
    number,
    subconfig,
    token_example,
)
from mmrec_jax.backbones.transformer import BlockMethod, Transformer, TransformerConfig, make_norm
from mmrec_jax.backbones.weights import Weight, WeightMap

BLOCK = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
    "feed_forward_norm": "layer_norm2",
}
IGNORED = {
    r"text_projection\.weight": "maps to the space shared with images, after the hidden states",
    r"visual_projection\.weight": "of the image tower",
    r"vision_model\..*": "the image tower",
    r"logit_scale": "temperature of the contrastive loss",
    r"embeddings\.position_ids": "a constant: 0, 1, 2, ...",
}


class ClipText(nn.Module):
    """Token ids to hidden states."""

    config: TransformerConfig
    vocabulary: int
    max_positions: int
    method: BlockMethod | None = None

    def setup(self) -> None:
        self.words = nn.Embed(self.vocabulary, self.config.width)
        self.positions = nn.Embed(self.max_positions, self.config.width)
        self.transformer = Transformer(self.config, self.method)
        self.norm = make_norm(self.config)

    def __call__(self, tokens: Tokens) -> tuple[Float[Array, "batch token width"], ...]:
        length = tokens.ids.shape[1]
        if length > self.max_positions:
            raise ValueError(f"{length} tokens, but the encoder has positions for {self.max_positions}")
        states = self.transformer(self.words(tokens.ids) + self.positions.embedding[:length], tokens.mask)
        if self.is_initializing():
            self.norm(states[-1])
        return states

    def final_norm(self, state: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        """transformers' last_hidden_state of the last hidden state."""
        return self.norm(state)


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """The text tower from its own config.json."""
    sizes = check_heads(
        TransformerConfig(
            width=integer(config, "hidden_size", 512),
            depth=integer(config, "num_hidden_layers", 12),
            heads=integer(config, "num_attention_heads", 8),
            hidden=integer(config, "intermediate_size", 2048),
            activation=activation(config, "quick_gelu"),
            norm="pre",
            norm_epsilon=number(config, "layer_norm_eps", 1e-5),
            causal=True,
        )
    )
    module = ClipText(
        sizes,
        vocabulary=integer(config, "vocab_size", 49408),
        max_positions=integer(config, "max_position_embeddings", 77),
        method=method,
    )
    weights = [
        Weight("words/embedding", "embeddings.token_embedding.weight"),
        Weight("positions/embedding", "embeddings.position_embedding.weight"),
        *block_weights(sizes, "encoder.layers.{layer}.", BLOCK),
        *norm_weights(sizes, "norm", "final_layer_norm"),
    ]
    return Encoder(
        module,
        sizes,
        WeightMap(tuple(weights), IGNORED, prefix="text_model."),
        example=token_example(),
        vocabulary=module.vocabulary,
        max_tokens=module.max_positions,
    )


def build_from_pair(config: dict, method: BlockMethod | None) -> Encoder:
    """The text tower from the config.json of both towers."""
    return build(subconfig(config, "text_config"), method)


def _size(width: int, heads: int) -> dict:
    return {
        "model_type": "clip_text_model",
        "hidden_size": width,
        "num_hidden_layers": 12,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }


PRESETS = {
    "clip-vit-base-patch32-text": _size(512, 8),
    "clip-vit-base-patch16-text": _size(512, 8),
    "clip-vit-large-patch14-text": _size(768, 12),
}
FAMILIES = (
    Family("clip_text_model", "text", build, PRESETS),
    Family("clip", "text", build_from_pair, tower="text_model."),
)
