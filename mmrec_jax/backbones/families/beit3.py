"""BEiT-3 (arXiv 2208.10442): images and texts through one multiway transformer with sub-normalisation.

Images take the vision branch, texts the language branch, and an image with a text both, attending to each other. The
same files serve an image and a text backbone; `joined` makes one model of the two. Hidden state 0 is the sum of patch
(or word) and position embeddings, zero at padding; state k is what block k gives. The final normalisation, one a
branch, comes after the last hidden state; `final_norm` applies it, which gives torchscale's encoder_out.

Files come from `mmrec_jax.backbones.convert_beit3`, which keeps the official checkpoints' names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from mmrec_jax.backbones.families.vit import patch_kernel
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
    pair,
    token_example,
)
from mmrec_jax.backbones.multiway import MultiwayTransformer, Streams
from mmrec_jax.backbones.patches import PatchEmbedding
from mmrec_jax.backbones.transformer import BlockMethod, TransformerConfig, make_norm
from mmrec_jax.backbones.weights import Weight, WeightMap, dense
from mmrec_jax.errors import BackboneError
from mmrec_jax.types import Params

if TYPE_CHECKING:
    from mmrec_jax.backbones.backbone import Backbone

PREFIX = "beit3."  # of the encoder's names in a checkpoint; the heads have none
LETTERS = {"vision": "A", "language": "B"}  # branch -> what the checkpoints call it
BLOCK = {
    "query": "self_attn.q_proj.{}",
    "key": "self_attn.k_proj.{}",
    "value": "self_attn.v_proj.{}",
    "attention_out": "self_attn.out_proj.{}",
    "attention_sub_norm": "self_attn.inner_attn_ln.{}",
    "attention_norm": "self_attn_layer_norm.{}",
    "up": "ffn.{}.fc1",
    "down": "ffn.{}.fc2",
    "feed_forward_sub_norm": "ffn.{}.ffn_layernorm",
    "feed_forward_norm": "final_layer_norm.{}",
}
UNUSED = {
    r"m[il]m_head\..*": "heads of masked image and language modelling",
    r"vision_embed\.mask_token": "stands for masked patches in pre-training only",
}
OTHER_BRANCH = {
    "vision": {r".*\.B\..*|text_embed\..*|language_head\..*": "the language branch, which images do not take"},
    "language": {r".*\.A\..*|vision_embed\..*|vision_head\..*": "the vision branch, which texts do not take"},
}
OFFSET = 2  # rows at the start of the tables of positions that no token has


@struct.dataclass
class ImageText:
    """An image and a text in each row, to be encoded jointly: the image's tokens come first."""

    pixels: Float[Array, "batch height width channel"]
    tokens: Tokens


Inputs = Float[Array, "batch height width channel"] | Tokens | ImageText


class Beit3(nn.Module):
    """Pixels, token ids or both to hidden states; the first token of each branch is its class token.

    Attributes:
        config: the core's sizes.
        patch: height and width of a patch.
        grid: rows and columns of patches that there are positions for.
        vocabulary: token ids.
        max_positions: tokens that a text may have.
        branches: those that it has the weights of, of "vision" and "language".
        retrieval: whether it has the heads that `embed` uses.
        method: applied at the blocks' places, told the branch.
    """

    config: TransformerConfig
    patch: tuple[int, int]
    grid: tuple[int, int]
    vocabulary: int
    max_positions: int
    branches: tuple[str, ...] = ("vision", "language")
    retrieval: bool = False
    method: BlockMethod | None = None

    def setup(self) -> None:
        c = self.config
        self.patches = PatchEmbedding(c.width, self.patch, self.grid)
        self.words = nn.Embed(self.vocabulary, c.width)
        self.positions = nn.Embed(self.max_positions, c.width)
        self.transformer = MultiwayTransformer(c, self.method)
        self.norms = {branch: make_norm(c, f"{branch}_norm") for branch in self.branches}
        if self.retrieval:
            self.heads = {
                branch: nn.Dense(c.width, use_bias=False, dtype=c.dtype, name=f"{branch}_head")
                for branch in self.branches
            }
            self.logit_scale = self.param("logit_scale", nn.initializers.constant(math.log(1 / 0.07)), ())

    def __call__(self, inputs: Inputs) -> tuple[Float[Array, "batch token width"], ...]:
        states, streams = self._encode(inputs)
        if self.is_initializing():
            self.final_norm(states[-1], dict(streams).get("vision", 0))
            if self.retrieval:
                for branch, _ in streams:
                    self.heads[branch](states[-1])
        return states

    def final_norm(
        self, state: Float[Array, "batch token width"], vision_tokens: int | None = None
    ) -> Float[Array, "batch token width"]:
        """torchscale's encoder_out of the last hidden state.

        Args:
            state: of an image, a text, or both.
            vision_tokens: how many of the tokens, from the first on, are the image's; may be left out where the
                model has one branch only.
        """
        if vision_tokens is None:
            if len(self.branches) > 1:
                raise ValueError(
                    "say how many of the tokens are the image's: each branch has a normalisation of its own"
                )
            return self.norms[self.branches[0]](state)
        parts = {"vision": state[:, :vision_tokens], "language": state[:, vision_tokens:]}
        return jnp.concatenate([self.norms[b](part) for b, part in parts.items() if part.shape[1]], axis=1)

    def embed(self, inputs: Float[Array, "batch height width channel"] | Tokens) -> Float[Array, "batch width"]:
        """Images or texts as unit vectors in the space of retrieval; exp(logit_scale) multiplies their products."""
        if isinstance(inputs, ImageText) or not self.retrieval:
            raise ValueError("embed takes images or texts, of a checkpoint with retrieval heads")
        states, ((branch, _),) = self._encode(inputs)
        made = self.heads[branch](self.norms[branch](states[-1][:, 0])).astype(jnp.float32)
        return made / jnp.maximum(jnp.linalg.norm(made, axis=-1, keepdims=True), 1e-12)

    def _encode(self, inputs: Inputs) -> tuple[tuple[Float[Array, "batch token width"], ...], Streams]:
        if isinstance(inputs, Tokens):
            words = self._words(inputs)
            streams: Streams = (("language", words.shape[1]),)
            return self.transformer(words, streams, inputs.mask), streams
        patches = self.patches(inputs.pixels if isinstance(inputs, ImageText) else inputs)
        vision = ("vision", patches.shape[1])
        if not isinstance(inputs, ImageText):
            return self.transformer(patches, (vision,)), (vision,)
        words = self._words(inputs.tokens)
        streams = (vision, ("language", words.shape[1]))
        mask = jnp.concatenate([jnp.ones(patches.shape[:2], bool), inputs.tokens.mask], axis=1)
        return self.transformer(jnp.concatenate([patches, words], axis=1), streams, mask), streams

    def _words(self, tokens: Tokens) -> Float[Array, "batch token width"]:
        length = tokens.ids.shape[1]
        if length > self.max_positions:
            raise ValueError(f"{length} tokens, but the encoder has positions for {self.max_positions}")
        x = self.words(tokens.ids) + self.positions.embedding[:length]
        return jnp.where(tokens.mask[..., None], x, 0)


def joined(image: Backbone, text: Backbone) -> tuple[Beit3, Params]:
    """One model of both branches, with the parameters of both, out of the two backbones of one folder.

    It takes images, texts and `ImageText`; the parameters are the same arrays, not copies.

    Raises:
        BackboneError: the two are not the vision and the language branch of the same weights, or not loaded alike.
    """
    vision, language = image.model, text.model
    if (
        not isinstance(vision, Beit3)
        or not isinstance(language, Beit3)
        or language.clone(branches=vision.branches) != vision
        or (vision.branches, language.branches) != (("vision",), ("language",))
        or image.weights_sha256 != text.weights_sha256
    ):
        raise BackboneError(
            f"{image.spec} ({image.family.kind}) and {text.spec} ({text.family.kind}) are not the image and the text "
            "backbone of one BEiT-3 folder, loaded with the same method, dtype and rematerialisation"
        )
    blocks = {
        name: {**block, **text.params["transformer"][name]} for name, block in image.params["transformer"].items()
    }
    return vision.clone(branches=tuple(LETTERS)), {**text.params, **image.params, "transformer": blocks}


def positions_of(letter: str) -> Callable[[np.ndarray], np.ndarray]:
    """A table of positions without the rows that no token has."""
    return lambda table: table[None, OFFSET:] if letter == "A" else table[OFFSET:]


def branch_weights(sizes: TransformerConfig, branch: str, retrieval: bool) -> list[Weight]:
    """Where one branch's parameters come from."""
    letter = LETTERS[branch]
    positions, place = f"encoder.embed_positions.{letter}.weight", positions_of(letter)
    if branch == "vision":
        made = [
            Weight("patches/cls_token", "vision_embed.cls_token"),
            Weight("patches/positions", positions, place),
            Weight("patches/projection/kernel", "vision_embed.proj.weight", patch_kernel),
            Weight("patches/projection/bias", "vision_embed.proj.bias"),
        ]
    else:
        made = [Weight("words/embedding", "text_embed.weight"), Weight("positions/embedding", positions, place)]
    names = {ours: theirs.format(letter) for ours, theirs in BLOCK.items()}
    made += block_weights(sizes, "encoder.layers.{layer}.", names, f"transformer/block_{{layer}}/{branch}")
    made += norm_weights(sizes, f"{branch}_norm", f"encoder.layer_norm.{letter}")
    if retrieval:
        made += [*dense(f"{branch}_head", f"{branch}_head", bias=False), Weight("logit_scale", "logit_scale")]
    return made


def build(config: dict, method: BlockMethod | None, branch: str) -> Encoder:
    """One branch of a BEiT-3 encoder from config.json."""
    sizes = check_heads(
        TransformerConfig(
            width=integer(config, "hidden_size"),
            depth=integer(config, "num_hidden_layers"),
            heads=integer(config, "num_attention_heads"),
            hidden=integer(config, "intermediate_size"),
            activation=activation(config, "gelu"),
            norm="pre",
            norm_epsilon=number(config, "layer_norm_eps", 1e-5),
            sub_norm=True,
        )
    )
    patch, image = pair(config, "patch_size", 16), pair(config, "image_size", 224)
    retrieval = bool(config.get("retrieval_heads", False))
    module = Beit3(
        sizes,
        patch,
        grid=(image[0] // patch[0], image[1] // patch[1]),
        vocabulary=integer(config, "vocab_size"),
        max_positions=integer(config, "max_position_embeddings", 1022),
        branches=(branch,),
        retrieval=retrieval,
        method=method,
    )
    weights = WeightMap(tuple(branch_weights(sizes, branch, retrieval)), {**UNUSED, **OTHER_BRANCH[branch]}, PREFIX)
    if branch == "vision":
        example = jnp.zeros((1, *patch, integer(config, "num_channels", 3)), jnp.float32)
        return Encoder(module, sizes, weights, example)
    return Encoder(
        module, sizes, weights, token_example(), vocabulary=module.vocabulary, max_tokens=module.max_positions
    )


def _size(width: int, depth: int, heads: int) -> dict:
    return {
        "model_type": "beit3",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "patch_size": 16,
        "image_size": 224,
        "num_channels": 3,
        "vocab_size": 64010,
        "max_position_embeddings": 1022,
        "retrieval_heads": True,
    }


PRESETS = {"beit3-base": _size(768, 12, 12), "beit3-large": _size(1024, 24, 16)}
FAMILIES = (
    Family("beit3", "image", partial(build, branch="vision"), PRESETS),
    Family("beit3", "text", partial(build, branch="language")),
)
