"""What a system is made of, as a user says it in a config."""

from __future__ import annotations

from dataclasses import dataclass

from mmrec_jax.errors import ConfigError

SYSTEMS = ("crossan", "sasrec")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and switches of the item encoder and the history.

    Attributes:
        system: `crossan` (item vectors from hidden states) or `sasrec` (from a table of ids).
        width: of item and user vectors.
        length: items of a history that the user encoder reads.
        window: `last` trains on each user's last `length` steps, `chunks` on all of a longer history in pieces.
        bottleneck: width inside the side blocks.
        bottlenecks: (modality, width) pairs for those with another.
        cross_source: what a tower receives from the other modalities: `side`, `backbone` or `none`.
        gate: of the sources of a side block: `softmax`, `sigmoid` or `add`.
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
    bottleneck: int = 64
    bottlenecks: tuple[tuple[str, int], ...] = ()
    cross_source: str = "side"
    gate: str = "softmax"
    shared_gates: bool = False
    gate_temperature: float = 0.1
    activation: str = "relu"
    standardise: bool = False

    def __post_init__(self):
        if self.system not in SYSTEMS:
            raise ConfigError(f"model.system={self.system!r}: choose one of {', '.join(SYSTEMS)}.")
        if self.window not in ("last", "chunks"):
            raise ConfigError(f"model.window={self.window!r}: choose last or chunks.")
        sizes = {"width": self.width, "length": self.length, "bottleneck": self.bottleneck}
        sizes |= {f"bottlenecks of {name}": size for name, size in self.bottlenecks}
        for name, size in sizes.items():
            if size < 1:
                raise ConfigError(f"model.{name}={size}: must be at least 1.")
        if self.gate_temperature <= 0:
            raise ConfigError(f"model.gate_temperature={self.gate_temperature}: must be above 0.")


@dataclass(frozen=True)
class UserConfig:
    """The user encoder (SASRec).

    Attributes:
        blocks: transformer blocks.
        heads: attention heads; must divide the model's width.
        dropout: rate.
    """

    blocks: int = 2
    heads: int = 2
    dropout: float = 0.1


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
