"""What to change where a run does not fit."""

from __future__ import annotations

from typing import Any

from mmrec_jax.planning.shapes import RunShapes

GIB = 2.0**30


def advice(training: dict[str, Any], run: RunShapes) -> list[str]:
    """Remedies, the most effective ones first, each with what it would save on one chip; none where the step fits.

    Args:
        training: the step's part of a plan.
        run: what it is of.
    """
    if training["fits"] is not False:
        return []
    groups, available = training["bytes"], training["available_bytes"]
    config, topology = run.config, run.topology
    found: list[tuple[float, str]] = []
    if groups["store"] and config.extraction.dtype != "int8":
        width = {"float32": 4, "bfloat16": 2}[config.extraction.dtype]
        saved = groups["store"] * (1 - 1 / width)
        found.append((saved, f"extraction.dtype=int8 saves {_told(saved)} of the store"))
    layers = {name: len(kept) for name, kept in (run.frozen.states.values if run.frozen.states else {}).items()}
    if groups["store"] and max(layers.values(), default=0) > 2:
        found.append((groups["store"] / 2, f"half of the layers save {_told(groups['store'] / 2)} of the store"))
    passing = groups["looked up"] + groups["temporary"]
    found.append((passing / 2, f"half of training.batch_size saves at least {_told(passing / 2)}"))
    if config.parallel.negatives == "global" and run.shards is not None:
        found.append((passing / 4, "parallel.negatives=local scores a chip's users over its own items only"))
    for name, method in config.methods.items():
        if not method.remat:
            found.append((passing / 2, f"methods.{name}.remat=True keeps no activations inside the blocks"))
        if not method.chunk:
            found.append((passing / 2, f"methods.{name}.chunk=64 encodes 64 items of a chip at a time"))
    split = groups["store"] + passing + groups["batch"]
    whole = sum(groups.values()) - split
    if whole < available:
        chips = topology.chips * split / (available - whole)
        power = topology.chips
        while power < chips:
            power *= 2
        found.append(
            (split * (1 - topology.chips / power), f"{power} {topology.chip.name} chips split store and batch")
        )
    else:
        found.append((whole, f"what every chip has whole takes {_told(whole)}: raise parallel.model, or add rules"))
    return [text for _, text in sorted(found, key=lambda pair: -pair[0])]


def _told(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
