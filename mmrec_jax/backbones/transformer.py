"""The transformer encoder that every family shares; what differs is data in `TransformerConfig`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from mmrec_jax.backbones.gelu import gelu
from mmrec_jax.backbones.rotary import Rotary, Turn, rotate, turn_of_positions
from mmrec_jax.backbones.scan import scanned
from mmrec_jax.types import Params

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}

PROJECTIONS = frozenset({"query", "key", "value", "attention_out", "up", "gate", "down"})
PARTS = ("attention", "feed_forward")
BLOCK_PLACES = ("attend", *PARTS, "feed_forward_residual", "block")
PLACES = ("tokens", *sorted(PROJECTIONS), *BLOCK_PLACES)


class BlockMethod(Protocol):
    """`method(place, layer, name)` puts a trainable module at a place of a block, without editing the block.

    It is asked once for every place of `PLACES` in every block (`layer` counts from 0) and returns None to leave
    the place as it is, or a Linen module made with `name=name`, which is called as `module(inputs, outputs)` with
    what the place takes and what it gives, and whose result, in the dtype of `outputs`, goes on in their place.
    Its parameters lie under `added_<place>` beside those of the place.

    - "query", "key", "value", "attention_out", "up", "gate", "down": the projections (LoRA adds to their outputs);
    - "tokens": what enters the first block, asked once for the stack (its layer is 0). What the module gives, [batch
      extra width], are further tokens, which every token may attend to (a learned prompt): they come first in a
      causal stack and last in the others, and no hidden state has them. Rows of several texts cannot have any;
    - "attend": from the queries [batch token head feature] to what their heads attended to, of the same shape
      (learned keys and values, a prefix, add to it);
    - "attention": the whole attention, before its residual (a bottleneck after attention works on its outputs);
    - "feed_forward": the whole feed-forward, before its residual (a parallel adapter adds a function of its inputs,
      which a pre-norm block has normalised);
    - "feed_forward_residual": from the residual stream before the feed-forward to that after it (a parallel adapter
      that reads the stream as it is);
    - "block": from what enters the block to what leaves it (an adapter after the feed-forward's residual).

    A multiway encoder asks once for each branch and names it, `method(place, layer, name, branch="vision")`; its
    places "attend" and "block" are one for all branches, which share their module (`branch` is ""), and it has no
    place "tokens".
    """

    def __call__(self, place: str, layer: int, name: str, *, branch: str = "") -> nn.Module | None: ...


@dataclass(frozen=True)
class TransformerConfig:
    """What distinguishes one transformer encoder from another, and how it is computed.

    Attributes:
        width: features of a token.
        depth: number of blocks.
        heads: attention heads of the queries.
        hidden: features between the two projections of the feed-forward.
        activation: a key of `ACTIVATIONS`.
        norm: "pre" normalises the input of attention and feed-forward, "post" the sum after each.
        norm_epsilon: added to the variance (or mean square) in normalisation.
        norm_kind: "layer" subtracts the mean, divides by the deviation and has a bias; "rms" (arXiv 1910.07467)
            divides by the root mean square and has none.
        biased: the projections with biases, of `PROJECTIONS`.
        key_heads: heads of keys and values, each shared by heads / key_heads queries (arXiv 2305.13245); 0 is `heads`.
        head_width: features of a head; 0 is width / heads.
        causal: whether a token attends to itself and those before it only.
        rotary: rotary positions; None has none in the blocks.
        layer_scale: whether a learned vector scales attention's and feed-forward's outputs.
        gated: whether the feed-forward is activation(gate x) * (up x) (SwiGLU when the activation is silu).
        last_tokens: how many of the first tokens leave the last block, where no more are used; 0 is all.
        sub_norm: whether attention normalises before `attention_out`, and the feed-forward before `down`
            (arXiv 2210.06423).
        remat: whether the backward pass computes each block again instead of keeping what is inside it.
        scan: how many of the first blocks to compute, those that are alike as a loop (`backbones.scan`); their last
            state stands for all above it. 0 computes all, each written out.
        heads_at_once: of whose scores there are any at a time, forward and backward; 0 computes all at once.
        dtype: "float32" or "bfloat16" of the hidden states and products; norms, softmax and rotation stay in float32.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    activation: str
    norm: Literal["pre", "post"]
    norm_epsilon: float
    norm_kind: Literal["layer", "rms"] = "layer"
    biased: frozenset[str] = PROJECTIONS
    key_heads: int = 0
    head_width: int = 0
    causal: bool = False
    rotary: Rotary | None = None
    layer_scale: bool = False
    gated: bool = False
    last_tokens: int = 0
    sub_norm: bool = False
    remat: bool = False
    scan: int = 0
    heads_at_once: int = 0
    dtype: str = "float32"

    @property
    def features_per_head(self) -> int:
        """Width of one head."""
        return self.head_width or self.width // self.heads


def make_norm(config: TransformerConfig, name: str | None = None) -> nn.LayerNorm | nn.RMSNorm:
    """A normalisation of the core's kind; it computes in float32 and gives the core's dtype."""
    kind = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[config.norm_kind]
    return kind(epsilon=config.norm_epsilon, dtype=config.dtype, use_fast_variance=False, name=name)


class Projection(nn.Module):
    """A dense layer at a named place, where a method may add to it."""

    config: TransformerConfig
    features: int
    place: str
    layer: int
    method: BlockMethod | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch token in"]) -> Float[Array, "batch token out"]:
        biased = self.place in self.config.biased
        dense = nn.Dense(self.features, use_bias=biased, dtype=self.config.dtype, name="dense")(x)
        return apply_method(self.method, self.place, self.layer, x, dense)


def apply_method(method: BlockMethod | None, place: str, layer: int, inputs: Array, outputs: Array) -> Array:
    """Lets `method` replace a place's outputs; the compact module that calls this owns what it makes."""
    module = method(place, layer, f"added_{place}") if method else None
    return outputs if module is None else module(inputs, outputs).astype(outputs.dtype)


Visible = Bool[Array, "batch_or_1 1 query_or_1 key"]
"""True where a query may attend to a key."""


def visible_keys(
    mask: Bool[Array, "batch token"] | Int[Array, "batch token"] | None, causal: bool, length: int
) -> Visible | None:
    """Which keys each query sees, of tokens that are not padding; None where every query sees every key.

    A mask of whole numbers says which of several texts of a row a token belongs to: each sees those of its own text.
    """
    padding: Visible | None
    if mask is not None and jnp.issubdtype(mask.dtype, jnp.integer):
        padding = mask[:, None, :, None] == mask[:, None, None, :]
    else:
        padding = None if mask is None else mask[:, None, None, :]
    if not causal:
        return padding
    before = jnp.tril(jnp.ones((length, length), bool))[None, None]
    return before if padding is None else before & padding


Heads = Float[Array, "batch token head feature"]


class Attention(nn.Module):
    """Multi-head self-attention with scores / sqrt(head width), in three steps: `heads`, `attend`, `gather`."""

    config: TransformerConfig
    layer: int
    method: BlockMethod | None = None

    def setup(self) -> None:
        c = self.config
        key_heads = c.key_heads or c.heads
        for place, features in (
            ("query", c.heads * c.features_per_head),
            ("key", key_heads * c.features_per_head),
            ("value", key_heads * c.features_per_head),
            ("attention_out", c.width),
        ):
            setattr(self, place, Projection(c, features, place, self.layer, self.method))
        if c.sub_norm:
            self.sub_norm = make_norm(c)

    def __call__(
        self, x: Float[Array, "batch token width"], visible: Visible | None, turn: Turn | None
    ) -> Float[Array, "batch token width"]:
        return self.gather(attend(*self.heads(x, turn), visible, self.config.heads_at_once))

    def heads(self, x: Float[Array, "batch token width"], turn: Turn | None) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values, the same number of heads each."""
        c = self.config
        query, key, value = (
            made.reshape(*made.shape[:-1], -1, c.features_per_head)
            for made in (self.query(x), self.key(x), self.value(x))
        )
        if turn is not None:
            query, key = rotate(query, turn), rotate(key, turn)
        if c.key_heads and c.key_heads != c.heads:
            key, value = (jnp.repeat(shared, c.heads // c.key_heads, axis=2) for shared in (key, value))
        return query, key, value

    def gather(self, mixed: Heads) -> Float[Array, "batch token width"]:
        """What the heads have attended to, as features of the residual stream."""
        mixed = mixed.reshape(*mixed.shape[:-2], -1)
        return self.attention_out(self.sub_norm(mixed) if self.config.sub_norm else mixed)


def attend(query: Heads, key: Heads, value: Heads, visible: Visible | None, at_once: int = 0) -> Heads:
    """Values averaged by the softmax of scores, which is in float32; of `at_once` heads at a time, or of fewer where
    these do not divide them."""
    # Heads before tokens: products over the middle axes are several times slower on CPU.
    query, key, value = (part.swapaxes(1, 2) for part in (query, key, value))
    heads = query.shape[1]
    if not 0 < at_once < heads:
        return _averaged(query, key, value, visible).swapaxes(1, 2)
    size = next(size for size in range(at_once, 0, -1) if heads % size == 0)
    # The scores of a lot then fit into a TPU core's fast memory: written to HBM and read again, several times forward
    # and backward, they would take longer than all products of the block.
    query, key, value = (jnp.stack(jnp.split(part, heads // size, axis=1)) for part in (query, key, value))
    averaged = jax.checkpoint(lambda part: _averaged(part[0], part[1], part[2], visible))
    mixed = lax.map(averaged, (query, key, value))
    return jnp.concatenate(list(mixed), axis=1).swapaxes(1, 2)


def _averaged(query: Array, key: Array, value: Array, visible: Visible | None) -> Array:
    scores = jnp.einsum("bhqf,bhkf->bhqk", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    if visible is not None:
        scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    shares = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bhkf->bhqf", shares, value)


class FeedForward(nn.Module):
    """Two projections with an activation between them, gated or not."""

    config: TransformerConfig
    layer: int
    method: BlockMethod | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch token width"]) -> Float[Array, "batch token width"]:
        c = self.config
        up = Projection(c, c.hidden, "up", self.layer, self.method, name="up")(x)
        if c.gated:
            gate = Projection(c, c.hidden, "gate", self.layer, self.method, name="gate")(x)
            inner = ACTIVATIONS[c.activation](gate) * up
        else:
            inner = ACTIVATIONS[c.activation](up)
        if c.sub_norm:
            inner = make_norm(c, "sub_norm")(inner)
        return Projection(c, c.width, "down", self.layer, self.method, name="down")(inner)


class Block(nn.Module):
    """Attention and feed-forward, each with its residual, normalisation and optional layer scale.

    It comes in two steps around `attend`, so that the blocks of several branches can attend jointly.
    """

    config: TransformerConfig
    layer: int
    method: BlockMethod | None = None

    def setup(self) -> None:
        c = self.config
        self.attention = Attention(c, self.layer, self.method)
        self.feed_forward = FeedForward(c, self.layer, self.method)
        self.norms = {part: make_norm(c, f"{part}_norm") for part in PARTS}
        if c.layer_scale:
            self.scales = {part: self.param(f"{part}_scale", nn.initializers.ones, (c.width,)) for part in PARTS}
        if self.method:
            self.added = {place: self.method(place, self.layer, f"added_{place}") for place in BLOCK_PLACES}

    def __call__(
        self, x: Float[Array, "batch token width"], visible: Visible | None, turn: Turn | None
    ) -> Float[Array, "batch token width"]:
        query, key, value = self.heads(x, turn)
        if self.layer == self.config.depth - 1 and (first := self.config.last_tokens):
            query, x, visible = query[:, :first], x[:, :first], None if visible is None else visible[:, :, :first]
        attended = attend(query, key, value, visible, self.config.heads_at_once)
        return self.finish(x, self._with_method("attend", query, attended))

    def heads(self, x: Float[Array, "batch token width"], turn: Turn | None) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values of what enters the block."""
        return self.attention.heads(self._entering("attention", x), turn)

    def finish(self, x: Float[Array, "batch token width"], mixed: Heads) -> Float[Array, "batch token width"]:
        """What leaves the block, of what enters it and of what its heads attended to."""
        middle = self._residual("attention", x, self.attention.gather(mixed))
        outputs = self._residual("feed_forward", middle, self.feed_forward(self._entering("feed_forward", middle)))
        outputs = self._with_method("feed_forward_residual", middle, outputs)
        return self._with_method("block", x, outputs)

    def _entering(self, part: str, x: Array) -> Array:
        return self.norms[part](x) if self.config.norm == "pre" else x

    def _residual(self, part: str, x: Array, outputs: Array) -> Array:
        outputs = self._with_method(part, self._entering(part, x), outputs)
        if self.config.layer_scale:
            outputs = outputs * self.scales[part].astype(outputs.dtype)
        return x + outputs if self.config.norm == "pre" else self.norms[part](x + outputs)

    def _with_method(self, place: str, inputs: Array, outputs: Array) -> Array:
        module = self.added[place] if self.method else None
        return outputs if module is None else module(inputs, outputs).astype(outputs.dtype)


class Transformer(nn.Module):
    """A stack of blocks that returns what enters the first and what leaves each."""

    config: TransformerConfig
    method: BlockMethod | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch token width"],
        mask: Bool[Array, "batch token"] | Int[Array, "batch token"] | None = None,
    ) -> tuple[Float[Array, "batch token width"], ...]:
        """Depth + 1 hidden states, index 0 being `x`; nothing attends to tokens whose `mask` is False.

        A mask of whole numbers is as in `visible_keys`.
        """
        c = self.config
        given = x.shape[1]
        x, mask = self._with_extra_tokens(x, mask)
        length = x.shape[1]
        visible = visible_keys(mask, c.causal, length)
        turn = turn_of_positions(c.rotary, c.features_per_head, length) if c.rotary else None
        states = [x.astype(c.dtype)]
        if c.scan and not self.is_initializing():
            states += self._scanned(states[0], visible, turn)
            states += states[-1:] * (c.depth - c.scan)
        else:
            block = nn.remat(Block) if c.remat else Block
            for layer in range(c.depth):
                states.append(block(c, layer, self.method, name=f"block_{layer}")(states[-1], visible, turn))
        return tuple(state[:, length - given :] if c.causal else state[:, :given] for state in states)

    def _scanned(
        self, x: Float[Array, "batch token width"], visible: Visible | None, turn: Turn | None
    ) -> list[Float[Array, "batch token width"]]:
        c = self.config

        def block(layer: int, params: Params, x: Array, key: Array | None) -> Array:
            rngs = None if key is None else {"dropout": key}
            # Of no parent: its parameters are given, and not this module's own.
            alone = Block(c, layer, self.method, parent=None)
            return jnp.asarray(alone.apply({"params": params}, x, visible, turn, rngs=rngs))

        params = [self.variables["params"][f"block_{layer}"] for layer in range(c.scan)]
        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        return scanned(block, params, x, key, c.remat, apart=bool(c.last_tokens) and c.scan == c.depth)

    def _with_extra_tokens(self, x: Array, mask: Array | None) -> tuple[Array, Array | None]:
        """The tokens, and which are not padding, with those that a method adds."""
        module = self.method("tokens", 0, "added_tokens") if self.method else None
        if module is None:
            return x, mask
        if mask is not None and jnp.issubdtype(mask.dtype, jnp.integer):
            raise ValueError("rows of several texts cannot have further tokens: each text would need its own")
        extra = module(x, x).astype(x.dtype)
        seen = None if mask is None else jnp.ones(extra.shape[:2], bool)

        def joined(own, further):
            return jnp.concatenate([further, own] if self.config.causal else [own, further], axis=1)

        return joined(x, extra), None if mask is None else joined(mask, seen)
