"""Several branches of one transformer, each with weights of its own, whose tokens attend to each other.

The decoupled Multiway Transformer of BEiT-3 (arXiv 2208.10442): norms, projections and feed-forward are a branch's
own, the softmax runs over the tokens of all branches.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mmrec_jax.backbones.transformer import (
    Block,
    BlockMethod,
    TransformerConfig,
    Visible,
    apply_method,
    attend,
    visible_keys,
)
from mmrec_jax.errors import ConfigError

Streams = tuple[tuple[str, int], ...]
"""The branches in the order of their tokens, each with how many tokens it has."""


def branch_method(method: BlockMethod | None, branch: str) -> BlockMethod | None:
    """What a branch's own block is asked to add: all but the places "attend" and "block", which the branches share."""
    if method is None:
        return None

    def of_branch(place: str, layer: int, name: str, *, branch: str = branch) -> nn.Module | None:
        return None if place in ("attend", "block") else method(place, layer, name, branch=branch)

    return of_branch


class MultiwayBlock(nn.Module):
    """One block a branch; every token attends to the tokens of all branches."""

    config: TransformerConfig
    layer: int
    streams: Streams
    method: BlockMethod | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token width"], visible: Visible | None
    ) -> Float[Array, "batch token width"]:
        branches, lengths = zip(*self.streams, strict=True)
        ends = np.cumsum(lengths)[:-1]
        blocks = [Block(self.config, self.layer, branch_method(self.method, b), name=b) for b in branches]
        entering = jnp.split(x, ends, axis=1)
        heads = [block.heads(part, None) for block, part in zip(blocks, entering, strict=True)]
        query, key, value = (jnp.concatenate(parts, axis=1) for parts in zip(*heads, strict=True))
        attended = attend(query, key, value, visible, self.config.heads_at_once)
        attended = apply_method(self.method, "attend", self.layer, query, attended)
        mixed = jnp.split(attended, ends, axis=1)
        leaving = [block.finish(*parts) for block, *parts in zip(blocks, entering, mixed, strict=True)]
        return apply_method(self.method, "block", self.layer, x, jnp.concatenate(leaving, axis=1))


class MultiwayTransformer(nn.Module):
    """A stack of multiway blocks that returns what enters the first and what leaves each."""

    config: TransformerConfig
    method: BlockMethod | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch token width"], streams: Streams, mask: Bool[Array, "batch token"] | None = None
    ) -> tuple[Float[Array, "batch token width"], ...]:
        """Depth + 1 hidden states, index 0 being `x`; nothing attends to tokens whose `mask` is False.

        Args:
            x: the branches' tokens, one branch after the other.
            streams: which tokens are whose; only these branches' weights are used.
            mask: True where a token is not padding.
        """
        c = self.config
        if c.scan:
            raise ConfigError(
                "methods.*.scan: blocks with branches are not computed as a loop: leave it off for BEiT-3."
            )
        visible = visible_keys(mask, c.causal, x.shape[1])
        block = nn.remat(MultiwayBlock) if c.remat else MultiwayBlock
        states = [x.astype(c.dtype)]
        for layer in range(c.depth):
            states.append(block(c, layer, streams, self.method, name=f"block_{layer}")(states[-1], visible))
        return tuple(states)
