"""How modality vectors become one item vector, as a user says it in a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmrec_jax.errors import ConfigError
from mmrec_jax.unread import refuse

KINDS = ("momef", "experts", "concat", "add", "sum", "attention")
_READERS = {
    "kind": (),
    "expert": ("momef", "experts"),
    "temperature": ("momef", "experts", "attention"),
    "residual": ("momef", "experts"),
}
"""Keys -> the kinds that read them, where that is not `experts` alone; () is all of them."""


@dataclass(frozen=True)
class FusionConfig:
    """How modality vectors become one item vector.

    Attributes:
        kind: `momef` (mixture of modality expert fusion), `experts` (the same with several experts a modality),
            `concat` (one linear map of the concatenation), `add` (the sum of the vectors and a bias), `sum` (mean of
            the present vectors) or `attention` (one learned query).
        expert: of `momef` and `experts`: `mlp` (linear, GELU, linear), `linear`, or of `momef` `identity`.
        temperature: of the softmax gate of `momef`, `experts` and `attention`.
        residual: of `momef` and `experts`: experts are added to the modality vector they read; not of `identity`.
        experts: of `experts`, as are all that follow: experts of each modality.
        top_k: how many of its modality's experts a vector is sent to; 0 is all of them, without routing.
        renormalise: the shares of the chosen experts are scaled to sum to 1; otherwise each keeps its share among all.
        capacity_factor: in a training step an expert takes at most this times the even load, and choices beyond are
            dropped, those of the smallest shares first.
        groups: parts of a batch's items that have a capacity of their own; 0 is one a device of the mesh. With another
            number, a multiple of the devices, what is dropped does not depend on how many devices there are.
        jitter: a training step multiplies what the routers read by numbers from [1 - jitter, 1 + jitter].
        balance_weight: of the loss that evens out the load of routed experts.
        z_weight: of the loss that keeps the logits of routers small.
    """

    kind: str = "momef"
    expert: str = "mlp"
    temperature: float = 1.0
    residual: bool = False
    experts: int = 4
    top_k: int = 0
    renormalise: bool = True
    capacity_factor: float = 1.25
    groups: int = 0
    jitter: float = 0.01
    balance_weight: float = 0.01
    z_weight: float = 0.001

    def __post_init__(self):
        for field, allowed in (("kind", KINDS), ("expert", ("mlp", "linear", "identity"))):
            if getattr(self, field) not in allowed:
                raise ConfigError(f"fusion.{field}={getattr(self, field)!r}: choose one of {', '.join(allowed)}.")
        for key in ("temperature", "capacity_factor"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"fusion.{key}={getattr(self, key)}: must be above 0.")
        if self.kind == "momef" and self.expert == "identity" and self.residual:
            raise ConfigError(
                "fusion.residual=True means nothing to fusion.expert='identity', which is the modality vector itself: "
                "choose expert mlp or linear, or residual=False."
            )
        if self.kind == "experts":
            self._check_experts()
        refuse("fusion", self, unread(vars(self)))

    def _check_experts(self) -> None:
        if self.expert == "identity":
            raise ConfigError(
                "fusion.expert='identity': experts without parameters are all the same; choose mlp or linear, or "
                "fusion.kind='momef'."
            )
        if self.experts < 1:
            raise ConfigError(f"fusion.experts={self.experts}: must be at least 1.")
        if not 0 <= self.top_k <= self.experts:
            raise ConfigError(
                f"fusion.top_k={self.top_k}: choose 0 (all) or a number up to fusion.experts={self.experts}."
            )
        if self.top_k == 1 < self.experts and self.renormalise:
            raise ConfigError(
                "fusion.top_k=1 with fusion.renormalise=True: the one share is always 1, so that routers would learn "
                "nothing from the task; set fusion.renormalise=False or top_k=2."
            )
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"fusion.jitter={self.jitter}: must lie in [0, 1).")
        for key in ("groups", "balance_weight", "z_weight"):
            if getattr(self, key) < 0:
                raise ConfigError(f"fusion.{key}={getattr(self, key)}: must not be negative.")


def unread(values: Mapping[str, Any]) -> dict[str, str]:
    """Keys of a fusion's values that its kind does not read -> what they mean nothing to."""
    kind = values["kind"]
    readers = {field.name: _READERS.get(field.name, ("experts",)) for field in fields(FusionConfig)}
    return {
        key: f"fusion.kind={kind!r}; it is read by {', '.join(kinds)}"
        for key, kinds in readers.items()
        if kinds and kind not in kinds
    }
