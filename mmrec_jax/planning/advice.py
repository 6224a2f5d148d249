"""What to change where a run does not fit: flags that are planned one after another until it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mmrec_jax.config import RunConfig
from mmrec_jax.planning.shapes import RunShapes, Sizes
from mmrec_jax.planning.topology import Topology


@dataclass(frozen=True)
class Remedy:
    """A change of a run.

    Attributes:
        why: what it does, for people.
        changes: keys of the config and their values.
        topology: to plan for instead; None for the same.
    """

    why: str
    changes: dict[str, Any] = field(default_factory=dict)
    topology: Topology | None = None

    @property
    def flags(self) -> str:
        """As they are added to the command line."""
        found = [f"--config.{key}={value}" for key, value in self.changes.items()]
        return " ".join([*found, *([f"--topology={self.topology.name}"] if self.topology else [])])

    def applied(self, config: RunConfig, topology: Topology, sizes: Sizes) -> tuple[RunConfig, Topology, Sizes]:
        """The run with the change."""
        for key, value in self.changes.items():
            section, *names = key.split(".")
            held: Any = getattr(config, section)
            if section == "methods":
                changed: Any = {**held, names[0]: replace(held[names[0]], **{names[1]: value})}
            else:
                changed = replace(held, **{names[0]: value})
            config = replace(config, **{section: changed})
        batch = config.training.batch_size
        if batch != sizes.batch:
            parts = sizes.batch // batch
            sizes = replace(sizes, batch=batch, distinct=-(-sizes.distinct // parts), steps=-(-sizes.steps // parts))
        return config, self.topology or topology, sizes


def remedies(training: dict[str, Any], run: RunShapes) -> Iterator[Remedy]:
    """Changes that make a step smaller: first those that change nothing of what is trained, last those of the batch.

    Args:
        training: the step's part of a plan.
        run: what it is of.
    """
    groups, available = training["bytes"], training["available_bytes"]
    config, topology, shards = run.config, run.topology, run.shards
    for name, method in config.methods.items():
        if not method.remat:
            yield Remedy("keeps no activations inside the blocks", {f"methods.{name}.remat": True})
        if not method.chunk or method.chunk > 8:
            yield Remedy("encodes 8 items of a chip at a time", {f"methods.{name}.chunk": 8})
    if groups["store"] and config.extraction.dtype != "int8":
        yield Remedy("states of one byte, and a scale each", {"extraction.dtype": "int8"})
    whole = sum(groups[name] for name in ("backbones", "params", "optimiser", "average", "gradients", "code"))
    parts = sum(groups.values()) - whole
    if whole < available:
        chips = topology.chips
        while chips * (available - whole) < topology.chips * parts:
            chips *= 2
        larger = topology.larger(chips)
        if larger is not None and larger.chips > topology.chips:
            yield Remedy("more chips share store and batch", topology=larger)
    if shards is not None and config.parallel.negatives == "global" and config.objective.candidates == "batch":
        yield Remedy("scores users over the items of their own chip", {"parallel.negatives": "local"})
    batch, least = config.training.batch_size // 2, 1 if shards is None else shards.batch_parts
    while batch >= least and batch % least == 0:
        yield Remedy("half of the users a step", {"training.batch_size": batch})
        batch //= 2
