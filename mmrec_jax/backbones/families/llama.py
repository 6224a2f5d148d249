"""Llama (arXiv 2302.13971, 2407.21783): a causal decoder with RMSNorm, rotary positions, grouped heads and SwiGLU.

Hidden state 0 is the word embeddings; state k is what block k gives, but state `depth` comes after the final
normalisation, as in transformers: it is last_hidden_state. Only a text's last token has seen all of it: pooling
"last" takes it. Padding is on the right.
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
    norm_weights,
    number,
    refuse,
    token_example,
)
from mmrec_jax.backbones.rotary import Rotary
from mmrec_jax.backbones.transformer import PROJECTIONS, BlockMethod, Transformer, TransformerConfig, make_norm
from mmrec_jax.backbones.weights import Weight, WeightMap
from mmrec_jax.errors import BackboneError

BLOCK = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_out": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "feed_forward_norm": "post_attention_layernorm",
}
IGNORED = {
    r"lm_head\.weight": "head of language modelling, or the word embeddings again",
    r"score\.weight": "head of a task",
    r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq": "a constant that follows from config.json",
}


class Decoder(nn.Module):
    """Token ids to hidden states."""

    config: TransformerConfig
    vocabulary: int
    method: BlockMethod | None = None

    def setup(self) -> None:
        self.words = nn.Embed(self.vocabulary, self.config.width)
        self.transformer = Transformer(self.config, self.method)
        self.norm = make_norm(self.config)

    def __call__(self, tokens: Tokens) -> tuple[Float[Array, "batch token width"], ...]:
        *states, last = self.transformer(self.words(tokens.ids), tokens.mask)
        return (*states, self.norm(last))

    def final_norm(self, state: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        """The last hidden state as it is: it has been normalised."""
        return jnp.asarray(state)


def decoder_encoder(config: dict, biased: frozenset[str], method: BlockMethod | None) -> Encoder:
    """A decoder in Llama's layout: the family says which projections have biases."""
    refuse(config, "is_causal", True, "attention to later tokens is another computation")
    width, heads = integer(config, "hidden_size"), integer(config, "num_attention_heads")
    sizes = check_heads(
        TransformerConfig(
            width=width,
            depth=integer(config, "num_hidden_layers"),
            heads=heads,
            hidden=integer(config, "intermediate_size"),
            activation=activation(config, "silu"),
            norm="pre",
            norm_epsilon=number(config, "rms_norm_eps", 1e-6),
            norm_kind="rms",
            biased=biased,
            key_heads=integer(config, "num_key_value_heads", heads),
            head_width=integer(config, "head_dim", max(width // heads, 1)),
            causal=True,
            rotary=read_rotary(config),
            gated=True,
        )
    )
    module = Decoder(sizes, vocabulary=integer(config, "vocab_size"), method=method)
    weights = [
        Weight("words/embedding", "embed_tokens.weight"),
        *block_weights(sizes, "layers.{layer}.", BLOCK),
        *norm_weights(sizes, "norm", "norm"),
    ]
    return Encoder(
        module,
        sizes,
        WeightMap(tuple(weights), IGNORED, prefix="model."),
        example=token_example(),
        vocabulary=module.vocabulary,
        max_tokens=integer(config, "max_position_embeddings", 2048),
    )


def read_rotary(config: dict) -> Rotary:
    """Rotary positions, by today's names in config.json (`rope_parameters`) or the older ones.

    Raises:
        BackboneError: they are scaled in a way that is not supported.
    """
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    refuse({**config, **said}, "partial_rotary_factor", 1.0, "turning only some features is another computation")
    theta = number(said, "rope_theta", number(config, "rope_theta", 10000.0))
    kind = said.get("rope_type", said.get("type", "default"))
    if kind == "default":
        return Rotary(theta)
    if kind == "linear":
        return Rotary(theta, "linear", number(said, "factor"))
    if kind == "llama3":
        return Rotary(
            theta,
            "llama3",
            factor=number(said, "factor"),
            low_turns=number(said, "low_freq_factor"),
            high_turns=number(said, "high_freq_factor"),
            trained_positions=integer(
                said, "original_max_position_embeddings", integer(config, "max_position_embeddings", 2048)
            ),
        )
    raise BackboneError(
        f"config.json: rotary positions of type {kind!r} are another computation; known are default, linear, llama3"
    )


def build(config: dict, method: BlockMethod | None) -> Encoder:
    """A Llama encoder from config.json."""
    attention, feed_forward = {"query", "key", "value", "attention_out"}, {"gate", "up", "down"}
    unbiased = (set() if config.get("attention_bias") else attention) | (
        set() if config.get("mlp_bias") else feed_forward
    )
    return decoder_encoder(config, PROJECTIONS - unbiased, method)


def _size(width: int, depth: int, heads: int, hidden: int, scaling: float = 0, **more: int) -> dict:
    made: dict = {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "intermediate_size": hidden,
        "vocab_size": 128256,
        "max_position_embeddings": 131072 if scaling else 8192,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        **more,
    }
    if scaling:
        made["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return made


PRESETS = {
    "llama-3-8b": _size(4096, 32, 32, 14336),
    "llama-3-70b": _size(8192, 80, 64, 28672),
    "llama-3.1-8b": _size(4096, 32, 32, 14336, scaling=8.0),
    "llama-3.1-70b": _size(8192, 80, 64, 28672, scaling=8.0),
    "llama-3.2-1b": _size(2048, 16, 32, 8192, scaling=32.0, head_dim=64),
    "llama-3.2-3b": _size(3072, 28, 24, 8192, scaling=32.0, head_dim=128),
}
FAMILIES = (Family("llama", "text", build, PRESETS),)
