"""Intra-modal and inter-modal side towers (IISAN, arXiv 2404.02059, section 3.2; IISAN-Versa, arXiv 2411.02992)."""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrec_jax.adapters.blocks import Head, blocks, linear
from mmrec_jax.adapters.chain import tower
from mmrec_jax.adapters.gates import gated_sum, source_weights
from mmrec_jax.adapters.sanb import ACTIVATIONS
from mmrec_jax.adapters.towers import BACKBONE, TowerSpec
from mmrec_jax.errors import ConfigError
from mmrec_jax.types import HiddenStates

INTER = "inter"


@dataclass(frozen=True)
class IntraInterConfig:
    """The towers.

    Attributes:
        modalities: their states, blocks and bottlenecks.
        towers: `intra` (one a modality), `inter` (one over two modalities) or `both`.
        gated: sources are mixed by gates; else they are added.
        temperature: of the gates.
        activation: of the blocks.
        bottleneck: of the inter-modal blocks.
    """

    modalities: tuple[TowerSpec, ...]
    towers: str = "both"
    gated: bool = True
    temperature: float = 0.1
    activation: str = "relu"
    bottleneck: int = 64

    def __post_init__(self):
        for field, allowed in (("towers", ("both", "intra", "inter")), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, field) not in allowed:
                raise ConfigError(f"model.{field}={getattr(self, field)!r}: choose one of {', '.join(allowed)}.")
        names = [spec.name for spec in self.modalities]
        if self.towers != "intra" and len(names) != 2:
            raise ConfigError(
                f"model.towers={self.towers!r}: the inter-modal tower mixes two modalities, and the config has "
                f"{', '.join(names) or 'none'}. Name two, or take the intra-modal towers alone: model.towers='intra'."
            )
        taken = sorted({BACKBONE, INTER} & set(names))
        if taken:
            raise ConfigError(f"A modality can't be called {taken[0]!r}: the towers use that word.")
        short = [spec.name for spec in self.modalities if spec.layers < 1]
        if short:
            raise ConfigError(f"modalities.{short[0]}: no layer is left for the tower; select more layers.")

    @property
    def widths(self) -> dict[str, int]:
        """Tower -> width of its states, in the order of the towers; the inter-modal one has the narrower width."""
        own = {spec.name: spec.width for spec in self.modalities} if self.towers != "inter" else {}
        inter = {INTER: min(spec.width for spec in self.modalities)} if self.towers != "intra" else {}
        return own | inter


class IntraInterTowers(nn.Module):
    """One tower of SANB blocks a modality, and one over both."""

    config: IntraInterConfig

    @nn.compact
    def __call__(self, hidden: HiddenStates, heads: dict[str, Head]) -> dict[str, Float[Array, "item out"]]:
        """Linear maps of each tower's last state (papers.md 1.0, items 4 to 6; 1.0b).

        Args:
            hidden: states of the items.
            heads: tower -> kernel [out, width] and bias [out] of the map.
        """
        config = self.config
        vectors = {}
        for spec in config.modalities if config.towers != "inter" else ():
            vectors[spec.name] = self._intra(spec, hidden, heads[spec.name])
        if config.towers != "intra":
            vectors[INTER] = self._inter(hidden, heads[INTER])
        return vectors

    def _intra(self, spec: TowerSpec, hidden: HiddenStates, head: Head) -> Float[Array, "item out"]:
        """``z_k = g_k H_k + (1 - g_k) s_{k-1}``, ``s_k = SANB_k(z_k)``, with ``s_{-1} = 0``."""
        states, made = hidden.values[spec.name], blocks(self, spec.name, spec.layers, spec.bottleneck, spec.width)
        weights = self._weights(spec.name, (BACKBONE, f"from_{spec.name}"), spec.layers, None).astype(states[0].dtype)
        sources = states[:1] + tuple(weights[rung, 0] * states[rung] for rung in range(1, spec.layers))
        return tower(weights[0, 0], sources, weights[:, 1], made, head, self.config.activation, not hidden.trained)

    def _inter(self, hidden: HiddenStates, head: Head) -> Float[Array, "item out"]:
        """``m_k = SANB_k(m_{k-1} + c_k H^1_k + (1 - c_k) H^2_k)``, with ``m_{-1} = 0``.

        The first modality of the config is the one that `c` weighs. States of the wider modality pass through a linear
        map to the narrower width, one a block; of more layers, the last ones are read (IISAN-Versa).
        """
        config = self.config
        count, width = min(spec.layers for spec in config.modalities), config.widths[INTER]
        made = blocks(self, INTER, count, config.bottleneck, width)
        masks = None if hidden.complete else [hidden.present[spec.name] for spec in config.modalities]
        weights = self._weights(INTER, tuple(f"from_{spec.name}" for spec in config.modalities), count, masks)
        sources = []
        for rung in range(count):
            states = [self._narrowed(spec, hidden.values[spec.name][rung - count], rung) for spec in config.modalities]
            sources.append(gated_sum(weights[rung].astype(states[0].dtype), tuple(states)))
        ones = jnp.ones(count, sources[0].dtype)
        return tower(ones[0], sources, ones, made, head, config.activation)

    def _narrowed(self, spec: TowerSpec, states: Float[Array, "item wide"], rung: int) -> Float[Array, "item narrow"]:
        """States in the inter-modal tower's width."""
        width = self.config.widths[INTER]
        if spec.width == width:
            return states
        kernel, bias = linear(self, f"transform_{spec.name}_{rung}", spec.width, width)
        return states @ kernel.T + bias

    def _weights(self, name: str, sources: tuple[str, ...], count: int, masks) -> Float[Array, "rung ... source"]:
        """Of two sources at each block: ``sigmoid(theta / temperature)`` and what that leaves to one; or one each."""
        config = self.config
        kind, theta = "add", jnp.zeros(count)
        if config.gated:
            kind, theta = "softmax", self.param(f"gate_{name}", nn.initializers.zeros, (count,))
        logits, there = jnp.stack([theta, jnp.zeros(count)], axis=1), jnp.ones((count, 2), bool)
        if masks is not None:
            logits, there = logits[:, None], jnp.stack(masks, axis=-1)[None]
        weights = jnp.broadcast_to(source_weights(logits, config.temperature, kind, there), (count, *there.shape[1:]))
        for block in weights:
            self.sow("gates", name, {source: block[..., i] for i, source in enumerate(sources)})
        return weights
