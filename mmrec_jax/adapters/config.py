"""What a user says about the trainable parts inside a modality's backbone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmrec_jax.adapters.sanb import ACTIVATIONS
from mmrec_jax.backbones.transformer import PROJECTIONS
from mmrec_jax.errors import ConfigError
from mmrec_jax.files import check_local

ADDING = {
    "lora": ("targets", "rank", "alpha", "dropout", "start"),
    "houlsby": ("bottleneck", "activation", "dropout"),
    "pfeiffer": ("bottleneck", "activation", "dropout"),
    "parallel": ("bottleneck", "activation", "dropout", "scale"),
    "prefix": ("tokens",),
    "prompt": ("tokens",),
}
"""Methods that add modules to a backbone -> the keys that they read beside `layers`."""
SELECTING = {"bitfit": (), "layer_norm": (), "top": ("top",), "full": ()}
"""Methods that train some of the backbone's own weights -> the keys that they read beside `layers`."""
METHODS = ("frozen", *ADDING, *SELECTING)
COMMON = ("kind", "remat", "scan", "chunk", "heads")
HARMLESS = ("remat", "scan", "chunk", "heads", "start")
"""Keys that change nothing of what a trained model computes."""
WHOLE = ("frozen", "prompt", "top", "full")  # they concern no single blocks


@dataclass(frozen=True)
class MethodConfig:
    """What is trained inside a backbone whose hidden states are computed in the step ("live").

    Attributes:
        kind: "frozen" (nothing: live states for what is beside the backbone), "lora", "houlsby", "pfeiffer",
            "parallel", "prefix", "prompt", "bitfit", "layer_norm", "top" or "full"; docs/methods.md says what each is.
        targets: projections that LoRA adds to, of `backbones.transformer.PROJECTIONS`.
        rank: of LoRA's product.
        alpha: LoRA's product is multiplied by alpha / rank.
        dropout: rate on the input of what LoRA or an adapter adds.
        bottleneck: width inside an adapter.
        activation: inside an adapter, of `adapters.sanb.ACTIVATIONS`.
        scale: what a parallel adapter's output is multiplied by.
        tokens: of a prefix (in each block) or a prompt.
        layers: blocks that the method is in, counted from 0; () is all of them.
        top: how many of the last blocks "top" trains.
        start: folder that the `peft` library wrote, whose LoRA matrices training begins with; "" is fresh ones.
        remat: whether the backward pass computes each block again instead of keeping what is inside it.
        scan: whether blocks that are alike are compiled once and run as a loop: programs small and soon compiled, for
            a copy of the weights in each step and, with dropout, other draws.
        chunk: items (rows of several texts count as one) that a device encodes at once, one lot after another, with the
            backward pass encoding each lot again: a bound on memory; 0 is all at once.
        heads: attention heads of whose scores there are any at a time; 0 is all. Those of a lot (items x tokens x
            tokens x 4 bytes a head) stay in a TPU core's fast memory where they take less than about 40 MB.
    """

    kind: str = "lora"
    targets: tuple[str, ...] = ("query", "value")
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    bottleneck: int = 64
    activation: str = "gelu"
    scale: float = 1.0
    tokens: int = 8
    layers: tuple[int, ...] = ()
    top: int = 2
    start: str = ""
    remat: bool = False
    scan: bool = False
    chunk: int = 0
    heads: int = 0

    def __post_init__(self) -> None:
        if self.kind not in METHODS:
            raise ConfigError(f"kind={self.kind!r}: choose one of {', '.join(METHODS)}.")
        if not self.targets or (unknown := sorted(set(self.targets) - PROJECTIONS)):
            named = ", ".join(unknown) if self.targets else "none"
            raise ConfigError(f"targets: {named} unknown; choose from {', '.join(sorted(PROJECTIONS))}.")
        if twice := sorted({target for target in self.targets if self.targets.count(target) > 1}):
            raise ConfigError(f"targets={self.targets}: {', '.join(twice)} twice; name each once.")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation={self.activation!r}: choose one of {', '.join(ACTIVATIONS)}.")
        for key in ("rank", "bottleneck", "tokens", "top"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}={getattr(self, key)}: must be at least 1.")
        if self.chunk < 0:
            raise ConfigError(f"chunk={self.chunk}: a number of items, or 0 for all at once.")
        if self.heads < 0:
            raise ConfigError(f"heads={self.heads}: a number of attention heads, or 0 for all at once.")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"alpha={self.alpha}: must be above 0 and finite.")
        if self.scale == 0 or not math.isfinite(self.scale):
            raise ConfigError(f"scale={self.scale}: must be finite and not 0.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout}: must be in [0, 1).")
        if any(layer < 0 for layer in self.layers) or list(self.layers) != sorted(set(self.layers)):
            raise ConfigError(f"layers={self.layers}: blocks are counted from 0, distinct and ascending.")
        check_local("start", self.start)
        if unread := sorted(self._unread()):
            raise ConfigError(f"{', '.join(unread)}: kind={self.kind!r} does not read it; leave it at its default.")

    def _unread(self) -> set[str]:
        """Keys that were set and that the method does not read."""
        read = {*COMMON, *ADDING.get(self.kind, ()), *SELECTING.get(self.kind, ())}
        if self.kind not in WHOLE:
            read.add("layers")
        return {key for key, field in self.__dataclass_fields__.items() if getattr(self, key) != field.default} - read
