"""Growth and pruning of a ladder's experts between two windows of a stream (XSMoE, arXiv 2508.05993; papers.md 4 b2).

Pure functions on parameters as a training leaves them: nested dicts of numpy arrays. Shapes stay as they are (except
under `grow_capacity`), so that what was compiled for the parameters fits the result. A rung is a node with two nodes of
slots (`mmrec_jax/slots.py`), for `E` experts of a backbone's width `d` and bottleneck `r`:

    items/ladders/rung_<modality>_<n>/experts  down [E, r, d], up [E, r, d], active [E], trainable [E], born [E]
                                     /router   rows [E + 1, d], active [E + 1], trainable [E + 1]

`n` counts from 1, as the layers of the paper do. Row 0 of the router is the backbone's, row `e + 1` that of slot `e`.
Unused slots hold zeros, and -1 in `born`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from mmrec_jax import slots
from mmrec_jax.types import Params

PREFIX = "rung_"
UNUSED = -1.0
"""`born` of slots that are not in use."""


@dataclass(frozen=True)
class Rung:
    """One rung of a ladder, with views of its parameters.

    Attributes:
        name: `<modality>_<n>`.
        path: keys that lead to it.
        experts, router: its two nodes of slots.
    """

    name: str
    path: tuple[str, ...]
    experts: Mapping[str, np.ndarray]
    router: Mapping[str, np.ndarray]

    @property
    def capacity(self) -> int:
        """Slots, used or not."""
        return len(self.experts["active"])

    @property
    def used(self) -> Int[np.ndarray, " expert"]:
        """Slots in use, ascending."""
        return np.flatnonzero(np.asarray(self.experts["active"]) > 0)

    @property
    def free(self) -> Int[np.ndarray, " slot"]:
        """Slots that are not in use, ascending."""
        return np.flatnonzero(np.asarray(self.experts["active"]) == 0)


@dataclass(frozen=True)
class Pruned:
    """An expert that was taken away: its rung, its slot, and its share of the rung's utilisation."""

    rung: str
    slot: int
    utilisation: float


@dataclass(frozen=True)
class Born:
    """An expert that was added: its rung and its slot."""

    rung: str
    slot: int


def rungs(params: Params) -> dict[str, Rung]:
    """All rungs by name, in the order of their names; none where the model has no ladder.

    Args:
        params: of a task, or of any part of one that holds the ladders.
    """
    found = {path[-1].removeprefix(PREFIX): (path, node) for path, node in _rung_nodes(params, ())}
    return {name: Rung(name, path, node["experts"], node["router"]) for name, (path, node) in sorted(found.items())}


def prune(
    params: Params,
    utilisation: Mapping[str, Float[np.ndarray, " slot"]],
    threshold: float,
    only: Collection[str] | None = None,
) -> tuple[Params, tuple[Pruned, ...]]:
    """Takes away the least used expert of each rung whose share of the utilisation is below a threshold.

    At most one of each rung, and never the last (papers.md 4 b2, item 7).

    Args:
        params: not changed.
        utilisation: rung -> of each slot, in any unit; the backbone has no part in it. Unused slots are not read. Of
            equals the lower slot is taken.
        threshold: share of all experts of the rung, `tau`; 0 prunes nothing.
        only: rungs that it is about; None for all.

    Returns:
        The parameters without them, and what was taken away.

    Raises:
        ValueError: a rung without utilisation, or one of another number of slots, or not finite.
    """
    pruned = []
    for name, rung in rungs(params).items():
        if only is not None and name not in only:
            continue
        shares = _shares(rung, utilisation)
        least = int(np.argmin(shares))
        if len(shares) == 1 or not shares[least] < threshold:
            continue
        slot = int(rung.used[least])
        experts, router = _copies(rung)
        for key, leaf in experts.items():
            leaf[slot] = UNUSED if key == "born" else 0.0
        for leaf in router.values():
            leaf[slot + 1] = 0.0
        params = _replaced(params, rung.path, {"experts": experts, "router": router})
        pruned.append(Pruned(name, slot, float(shares[least])))
    return params, tuple(pruned)


def expand(params: Params, window: int, rng: np.random.Generator) -> tuple[Params, tuple[Born, ...], tuple[str, ...]]:
    """Adds an expert to each rung, and freezes all that were there (papers.md 4 b2, item 8).

    An added expert begins as the mean of the rung's experts, in the lowest free slot; its router row is drawn as a
    linear layer's (uniform within 1 / sqrt(d)). Other router rows stay as they are, and are trained on.

    Args:
        params: not changed.
        window: what `born` says of the added experts: the number of the window that was trained last.
        rng: for the router rows; rungs draw in the order of their names.

    Returns:
        The parameters with them, what was added, and the rungs that had no free slot and are unchanged.
    """
    born, full = [], []
    for name, rung in rungs(params).items():
        if not len(rung.free):
            full.append(name)
            continue
        slot = int(rung.free[0])
        experts, router = _copies(rung)
        for key in ("down", "up"):
            experts[key][slot] = np.mean(experts[key][rung.used], axis=0, dtype=np.float64)
        experts["active"][slot], experts["born"][slot] = 1.0, window
        experts["trainable"][:] = 0.0
        experts["trainable"][slot] = 1.0
        bound = 1.0 / math.sqrt(router["rows"].shape[1])
        router["rows"][slot + 1] = rng.uniform(-bound, bound, router["rows"].shape[1])
        router["active"][slot + 1] = router["trainable"][slot + 1] = 1.0
        params = _replaced(params, rung.path, {"experts": experts, "router": router})
        born.append(Born(name, slot))
    return params, tuple(born), tuple(full)


def grow_capacity(params: Params, capacity: int) -> Params:
    """More slots for each rung; what was compiled for the old shapes no longer fits.

    Raises:
        ValueError: a rung has more slots already.
    """
    for name, rung in rungs(params).items():
        more = capacity - rung.capacity
        if more < 0:
            raise ValueError(f"rung {name} has {rung.capacity} slots: capacity={capacity} would take some away.")
        experts, router = (
            {
                key: np.concatenate(
                    [leaf, np.full((more, *leaf.shape[1:]), UNUSED if key == "born" else 0.0, leaf.dtype)]
                )
                for key, leaf in node.items()
            }
            for node in _copies(rung)
        )
        params = _replaced(params, rung.path, {"experts": experts, "router": router})
    return params


def describe(
    params: Params, utilisation: Mapping[str, Float[np.ndarray, " slot"]] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The experts of each rung as plain JSON values.

    Returns:
        Rung -> for each expert in use `slot`, `born` (the window after which it was added, 0 for those that the model
        began with), `trainable`, and `utilisation` (its share of the rung's; None where none is given).
    """
    told = {}
    for name, rung in rungs(params).items():
        shares = [None] * len(rung.used) if utilisation is None else _shares(rung, utilisation).tolist()
        told[name] = [
            {
                "slot": int(slot),
                "born": int(rung.experts["born"][slot]),
                "trainable": bool(rung.experts["trainable"][slot] > 0),
                "utilisation": share,
            }
            for slot, share in zip(rung.used, shares, strict=True)
        ]
    return told


def counts(params: Params) -> tuple[int, int]:
    """How many parameters are trained, and how many there are; unused slots and masks do not count."""
    return slots.counts(params)


def _rung_nodes(node: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    for key, below in node.items():
        if not isinstance(below, Mapping):
            continue
        if key.startswith(PREFIX) and slots.is_slots(below.get("experts")) and slots.is_slots(below.get("router")):
            yield (*path, key), below
        else:
            yield from _rung_nodes(below, (*path, key))


def _shares(rung: Rung, utilisation: Mapping[str, Float[np.ndarray, " slot"]]) -> Float[np.ndarray, " expert"]:
    """Utilisation of the experts in use, as shares; equal ones where all of it is 0."""
    if rung.name not in utilisation:
        raise ValueError(f"rung {rung.name} has no utilisation; there is that of {', '.join(utilisation) or 'none'}.")
    values = np.asarray(utilisation[rung.name], np.float64)
    if values.shape != (rung.capacity,):
        raise ValueError(f"utilisation of rung {rung.name} has shape {values.shape}; it has {rung.capacity} slots.")
    values = values[rung.used]
    if not np.isfinite(values).all():
        raise ValueError(f"utilisation of rung {rung.name} is not finite: {values.tolist()}.")
    total = values.sum()
    return values / total if total > 0 else np.full(len(values), 1 / len(values))


def _copies(rung: Rung) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The experts' and the router's leaves, to be written to."""
    experts, router = ({key: np.array(leaf) for key, leaf in node.items()} for node in (rung.experts, rung.router))
    return experts, router


def _replaced(params: Params, path: tuple[str, ...], node: Params) -> Params:
    """A tree that differs by one node and shares all others."""
    if not path:
        return node
    return {**params, path[0]: _replaced(params[path[0]], path[1:], node)}
