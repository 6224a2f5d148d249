"""One side tower a modality, with cross-modal exchange inside (CROSSAN, arXiv 2504.10307; papers.md 1.1).

The exact equations of the paper were not to be had: what is built here is the project's PROPOSAL, pinned by the
paper's claims (one tower a modality, cached states, scalar gates over the side states of all modalities).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmrec_jax.adapters.blocks import Head, blocks
from mmrec_jax.adapters.gates import gated_sum, source_weights, split_off
from mmrec_jax.adapters.sanb import ACTIVATIONS, first_sanb, last_sanb, sanb
from mmrec_jax.errors import ConfigError
from mmrec_jax.types import HiddenStates

BACKBONE = "backbone"
SHARED = "shared"


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


def growth_rules(names: Iterable[str]) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """How those of some parameters, named by their paths, grow whose shape depends on what is added: shared gates, by a
    deeper modality. See `training.warm_start`.

    Rungs are counted from the end, so the new ones come first; no tower of the earlier model stands on them.
    """

    def deeper(old: Float[np.ndarray, " rung"], fresh: Float[np.ndarray, " more"]) -> Float[np.ndarray, " more"]:
        return np.concatenate([fresh[: len(fresh) - len(old)], old])

    return {name: deeper for name in names if re.fullmatch(rf"(.*/)?gate_{SHARED}_[^/]+", name)}


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

        weights = {name: self._weights(name, gates, start, hidden) for name in specs}

        state: dict[str, Array] = {}  # side states of the rung before; absent where the tower has none yet
        for rung in range(rungs):
            active = [name for name in specs if start[name] <= rung]
            backbone = {name: hidden.values[name][rung - start[name]] for name in active}
            before, state = state, {}
            for name in active:
                sources, columns = self._sources(name, rung - start[name], backbone, before)
                shares = weights[name][rung - start[name]]
                shares = shares if len(columns) == shares.shape[-1] else shares[..., jnp.array(columns)]
                block = towers[name][rung - start[name]]
                if rung == rungs - 1 and heads is not None:
                    z = gated_sum(shares, sources)
                    state[name] = last_sanb(z, *block, *heads[name], config.activation)
                elif len(sources) == 1 and shares.ndim == 1 and not hidden.trained:
                    state[name] = first_sanb(shares[0], sources[0], *block, config.activation)
                else:
                    state[name] = sanb(gated_sum(shares, sources), *block, config.activation)
        return state

    def _source_names(self, target: str) -> list[str]:
        """What the blocks of a tower can mix, in the order of their weights."""
        names = [spec.name for spec in self.config.modalities]
        return [BACKBONE] + [name for name in names if name == target or self.config.cross_source != "none"]

    def _weights(self, target, gates, start, hidden: HiddenStates) -> list[Float[Array, "*item source"]]:
        """Weights of the sources of each block of a tower: shared by all items, or of each item where some lack some.

        A tower that has not begun is no source; one that begins with this rung has a state of zero, which weighs.
        """
        config = self.config
        names = self._source_names(target)
        depth = next(spec.layers for spec in config.modalities if spec.name == target)
        logits = gates["" if config.shared_gates else target]
        # Rungs are counted from the end, where all towers stand side by side.
        stacked = jnp.stack([logits[name][-depth:] for name in names], axis=-1)
        begun = np.array([[start.get(name, 0) <= start[target] + rung for name in names] for rung in range(depth)])
        there = jnp.asarray(begun)
        if not hidden.complete and len(names) > 1 + (target in names):
            everyone = jnp.ones_like(hidden.present[target])
            masks = [everyone if name in (BACKBONE, target) else hidden.present[name] for name in names]
            stacked, there = stacked[:, None], there[:, None] & jnp.stack(masks, axis=-1)
        weights = split_off(source_weights(stacked, config.temperature, config.gate, there), axis=0)
        for begun_here, of_block in zip(begun, weights, strict=True):
            # Kept only where the caller asks for the collection `gates`, to explain a model.
            told = {name if name == BACKBONE else f"from_{name}": i for i, name in enumerate(names) if begun_here[i]}
            self.sow("gates", target, {name: of_block[..., i] for name, i in told.items()})
        return weights

    def _sources(
        self, target: str, rung: int, backbone: dict[str, Array], state: dict[str, Array]
    ) -> tuple[tuple[Float[Array, "item width"], ...], list[int]]:
        """Values of what a block mixes, and the columns of their weights; states that are zero are left out."""
        sources, columns = [], []
        source: Array | None
        for column, name in enumerate(self._source_names(target)):
            if name == BACKBONE:
                source = backbone[target]
            elif name == target or self.config.cross_source == "side":
                source = state.get(name)
            else:
                source = backbone.get(name)
            if source is not None:
                sources.append(self._to_width(source, name, target, rung))
                columns.append(column)
        return tuple(sources), columns

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
            source: self.param(f"gate_{target or SHARED}_{source}", nn.initializers.constant(value), (rungs,))
            for source, value in values.items()
        }
