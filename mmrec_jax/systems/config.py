"""What a system is made of, as a user says it in a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmrec_jax.errors import ConfigError
from mmrec_jax.systems.registry import SYSTEMS, known
from mmrec_jax.unread import refuse

COMMON = ("system", "width", "length", "window", "add_ids")
"""Keys of `model` that every system reads; the others are switches of some."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of the item encoder and the history.

    Attributes:
        system: a page of `mmrec_jax/systems`, such as `crossan`, or a module elsewhere (`my_shop.towers`).
        width: of item and user vectors.
        length: items of a history that the user encoder reads.
        window: `last` trains on each user's last `length` steps, `chunks` on all of a longer history in pieces.
        add_ids: a trained vector of its id is added to what content says of an item.
        bottleneck: width inside the side blocks.
        bottlenecks: (modality, width) pairs for those with another.
        cross_source: what a tower receives from the other modalities: `side`, `backbone` or `none`.
        gate: of the sources of a side block: `softmax`, `sigmoid` (IISAN has no such gates) or `add`.
        towers: of IISAN: `intra` (one a modality), `inter` (one over both) or `both`.
        remove_first: of IISAN: leave out the first selected state of each modality.
        experts: of XSMoE: experts of each rung to begin with.
        capacity: of XSMoE: how many experts a rung has room for; growth up to it compiles nothing again.
        states: of `linear`: read the `last` selected state of each modality, or all `concatenated`.
        shared_gates: one set of gates a rung for all target modalities.
        gate_temperature: what the gates' logits are divided by.
        activation: inside the side blocks.
        standardise: take the catalogue's mean from the hidden states of each layer, and scale them to a mean square
            of 1, before the towers read them.
    """

    system: str = "crossan"
    width: int = 64
    length: int = 10
    window: str = "last"
    add_ids: bool = False
    bottleneck: int = 64
    bottlenecks: tuple[tuple[str, int], ...] = ()
    cross_source: str = "side"
    gate: str = "softmax"
    shared_gates: bool = False
    gate_temperature: float = 0.1
    activation: str = "relu"
    standardise: bool = False
    towers: str = "both"
    remove_first: bool = False
    states: str = "last"
    experts: int = 1
    capacity: int = 10

    def __post_init__(self):
        if not known(self.system):
            raise ConfigError(f"model.system={self.system!r}: choose one of {', '.join(SYSTEMS)}.")
        if self.window not in ("last", "chunks"):
            raise ConfigError(f"model.window={self.window!r}: choose last or chunks.")
        if self.states not in ("last", "concatenated"):
            raise ConfigError(f"model.states={self.states!r}: choose last or concatenated.")
        sizes = {"width": self.width, "length": self.length, "bottleneck": self.bottleneck}
        sizes |= {f"bottlenecks of {name}": size for name, size in self.bottlenecks}
        for name, size in sizes.items():
            if size < 1:
                raise ConfigError(f"model.{name}={size}: must be at least 1.")
        if self.gate_temperature <= 0:
            raise ConfigError(f"model.gate_temperature={self.gate_temperature}: must be above 0.")
        refuse("model", self, unread_of_model(vars(self)))

    def switched(self) -> dict[str, Any]:
        """Keys that not every system reads, where they have another value than their default."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {key: value for key, (value, default) in values.items() if key not in COMMON and value != default}

    def without_switches(self, system: str) -> ModelConfig:
        """Of another system: what all read is kept, switches are at their defaults."""
        return ModelConfig(**{key: getattr(self, key) for key in COMMON} | {"system": system, "add_ids": False})


@dataclass(frozen=True)
class UserConfig:
    """The user encoder.

    Attributes:
        kind: `sasrec` (self-attention) or `gru` (GRU4Rec's gated recurrent unit).
        blocks: transformer blocks, or recurrent layers.
        heads: attention heads of `sasrec`, and of no other kind; must divide the model's width.
        dropout: rate.
    """

    kind: str = "sasrec"
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.1

    def __post_init__(self):
        if self.kind not in ("sasrec", "gru"):
            raise ConfigError(f"user.kind={self.kind!r}: choose sasrec or gru.")
        if self.blocks < 1:
            raise ConfigError(f"user.blocks={self.blocks}: must be at least 1.")
        if self.heads < 1:
            raise ConfigError(f"user.heads={self.heads}: must be at least 1.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"user.dropout={self.dropout}: must lie in [0, 1).")


@dataclass(frozen=True)
class ScoringConfig:
    """How a user vector and an item vector make a score.

    Attributes:
        similarity: `dot` (the papers') or `cosine`.
        scale: what cosines are multiplied by.
        learn_scale: train the scale, starting from `scale`.
    """

    similarity: str = "dot"
    scale: float = 18.0
    learn_scale: bool = False

    def __post_init__(self):
        if self.similarity not in ("dot", "cosine"):
            raise ConfigError(f"scoring.similarity={self.similarity!r}: choose dot or cosine.")
        if self.scale <= 0:
            raise ConfigError(f"scoring.scale={self.scale}: must be above 0.")
        if self.learn_scale and self.similarity == "dot":
            raise ConfigError("scoring.learn_scale needs similarity='cosine': a dot product has no scale to learn.")
        refuse("scoring", self, unread_of_scoring(vars(self)))


def unread_of_model(values: Mapping[str, Any]) -> dict[str, str]:
    """Keys of `model` that its other values leave without a reader -> what they mean nothing to."""
    found = {}
    if values["gate"] == "add":
        found["gate_temperature"] = "model.gate='add'; it is read by softmax, sigmoid"
    if values["towers"] == "inter":
        found["bottlenecks"] = "model.towers='inter', whose one tower has model.bottleneck"
    return found


def unread_of_scoring(values: Mapping[str, Any]) -> dict[str, str]:
    """As `unread_of_model`, of `scoring`."""
    return {"scale": "scoring.similarity='dot'; it is read by cosine"} if values["similarity"] == "dot" else {}
