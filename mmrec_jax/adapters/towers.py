"""One side tower a modality, with cross-modal exchange inside (CROSSAN, arXiv 2504.10307; papers.md 1.1).

The exact equations of the paper were not to be had: what is built here is the project's PROPOSAL, pinned by the
paper's claims (one tower a modality, cached states, scalar gates over the side states of all modalities).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmrec_jax.adapters.blocks import Head, blocks
from mmrec_jax.adapters.gates import gated_sum, source_weights
from mmrec_jax.adapters.sanb import ACTIVATIONS, first_sanb, last_sanb, sanb
from mmrec_jax.errors import ConfigError
from mmrec_jax.types import HiddenStates

BACKBONE = "backbone"


@dataclass(frozen=True)
class TowerSpec:
    """One modality's tower: its name, the width of its hidden states, its rungs and its bottleneck."""

    name: str
    width: int
    layers: int
    bottleneck: int = 64


@dataclass(frozen=True)
class TowerConfig:
    """The side towers of all modalities.

    Attributes:
        modalities: one tower each. Towers of different depth end together: a longer one consumes its first layers
            alone (IISAN-Versa).
        cross_source: what a tower receives from the other modalities: their `side` states of the rung before, their
            `backbone` states of the same rung, or `none` (IISAN's intra-modal tower).
        gate: `softmax`, `sigmoid` or `add`.
        shared_gates: one set of gates a rung for all target modalities.
        temperature: of the gates.
        activation: of the blocks.
    """

    modalities: tuple[TowerSpec, ...]
    cross_source: str = "side"
    gate: str = "softmax"
    shared_gates: bool = False
    temperature: float = 0.1
    activation: str = "relu"

    def __post_init__(self):
        for field, allowed in (
            ("cross_source", ("side", "backbone", "none")),
            ("gate", ("softmax", "sigmoid", "add")),
            ("activation", tuple(ACTIVATIONS)),
        ):
            if getattr(self, field) not in allowed:
                raise ConfigError(f"{field}={getattr(self, field)!r}: choose one of {', '.join(allowed)}.")
        if not self.modalities:
            raise ConfigError("A model of side towers needs at least one modality; the config names none.")
        if BACKBONE in (spec.name for spec in self.modalities):
            raise ConfigError(f"A modality can't be called {BACKBONE!r}: the towers use that word for a gate.")


class CrossModalTowers(nn.Module):
    """`n` towers of SANB blocks that exchange their states at every rung.

    Parameters are named by modality (and, for gates, by target and source), so that the parameters of a model with
    fewer modalities are a subtree of those of a model with more.
    """

    config: TowerConfig

    @nn.compact
    def __call__(self, hidden: HiddenStates, heads: dict[str, Head] | None = None) -> dict[str, Float[Array, "item _"]]:
        """The last side state of each tower, or a linear map of it (papers.md 1.1, PROPOSAL, items 1 to 3).

        Args:
            hidden: states of the items.
            heads: modality -> kernel [out, width] and bias [out] of the map; without, the states themselves.
        """
        config = self.config
        specs = {spec.name: spec for spec in config.modalities}
        rungs = max(spec.layers for spec in config.modalities)
        start = {name: rungs - spec.layers for name, spec in specs.items()}
        gates = {name: self._gate_logits(name) for name in ([""] if config.shared_gates else specs)}
        towers = {name: blocks(self, name, spec.layers, spec.bottleneck, spec.width) for name, spec in specs.items()}

        state: dict[str, Array] = {}  # side states of the rung before; absent where the tower has none yet
        for rung in range(rungs):
            active = [name for name in specs if start[name] <= rung]
            backbone = {name: hidden.values[name][rung - start[name]] for name in active}
            before, state = state, {}
            for name in active:
                weights, sources = self._sources(name, rung, start, active, backbone, before, gates, hidden)
                block = towers[name][rung - start[name]]
                if rung == rungs - 1 and heads is not None:
                    z = gated_sum(weights, sources)
                    state[name] = last_sanb(z, *block, *heads[name], config.activation)
                elif len(sources) == 1 and weights.ndim == 1 and not hidden.trained:
                    state[name] = first_sanb(weights[0], sources[0], *block, config.activation)
                else:
                    state[name] = sanb(gated_sum(weights, sources), *block, config.activation)
        return state

    def _sources(
        self, target, rung, start, active, backbone, state, gates, hidden
    ) -> tuple[Float[Array, "*item source"], tuple[Float[Array, "item width"], ...]]:
        """Weights and values of what a block mixes. A tower's state before its first rung is zero, and left out."""
        config = self.config
        logits = gates["" if config.shared_gates else target]
        names = [BACKBONE] + [name for name in active if name == target or config.cross_source != "none"]
        # Rungs are counted from the end, where all towers stand side by side.
        column = rung - max(spec.layers for spec in config.modalities)
        masks = [None if name in (BACKBONE, target) else hidden.present[name] for name in names]
        shared = hidden.complete or not any(mask is not None for mask in masks)  # the same weights for all items
        weights = source_weights(
            jnp.stack([logits[name][column] for name in names]),
            config.temperature,
            config.gate,
            None if shared else masks,
        )
        # Kept only where the caller asks for the collection `gates`, to explain a model.
        told = {name if name == BACKBONE else f"from_{name}": weights[..., i] for i, name in enumerate(names)}
        self.sow("gates", target, told)
        indices, sources = [], []
        for index, name in enumerate(names):
            if name == BACKBONE:
                source = backbone[target]
            elif name == target or config.cross_source == "side":
                source = state.get(name)
            else:
                source = backbone[name]
            if source is not None:
                indices.append(index)
                sources.append(self._to_width(source, name, target, rung - start[target]))
        return weights[..., jnp.array(indices)], tuple(sources)

    def _to_width(self, source, name, target, rung) -> Float[Array, "item width"]:
        """The dimension transformation layer of IISAN-Versa (papers.md 1.0b): a linear map where widths differ."""
        width = next(spec.width for spec in self.config.modalities if spec.name == target)
        if source.shape[-1] == width:
            return source
        return nn.Dense(width, name=f"transform_{target}_from_{name}_{rung}")(source)

    def _gate_logits(self, target: str) -> dict[str, Float[Array, " rung"]]:
        """Logits that start with half of the weight on the backbone, the rest shared equally by the side states."""
        config = self.config
        everyone = [spec.name for spec in config.modalities]
        others = everyone if config.cross_source != "none" or config.shared_gates else [target]
        own = [spec.layers for spec in config.modalities if spec.name == target]
        rungs = own[0] if own else max(spec.layers for spec in config.modalities)
        sides = 1 if config.cross_source == "none" else len(everyone)
        if config.gate == "softmax":
            backbone, side = math.log(sides) * config.temperature, 0.0
        else:
            backbone, side = 0.0, -math.log(2 * sides - 1) * config.temperature
        values = {BACKBONE: backbone} | dict.fromkeys(others, side)
        return {
            source: self.param(f"gate_{target or 'shared'}_{source}", nn.initializers.constant(value), (rungs,))
            for source, value in values.items()
        }
