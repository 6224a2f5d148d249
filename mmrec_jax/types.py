"""Structured values that several rooms share."""

from __future__ import annotations

from typing import Any

from flax import struct
from jaxtyping import Array, Bool, Float, Int

Params = dict  # a nested dict of arrays: what is trained
TRAINING = "training"
"""Flax key of an item encoder in a training step: what a module draws, and how it knows of one (`has_rng`)."""
LOSSES, METRICS = "losses", "metrics"
"""Flax collections of an item encoder: a module may `sow` terms that are added to the task's loss, and metrics."""


@struct.dataclass
class SequenceBatch:
    """Histories and their targets, with each distinct item of the batch named once.

    Attributes:
        items: catalogue rows of the batch's distinct items; entry 0 is the padding row 0, and unused entries at
            the end are 0 too.
        counts: how often each occurs in the batch, inputs and targets together; 0 for padding.
        positions: each user's events in time order as indices into `items`, padded with 0 on the left. Column j is
            the input of step j and column j + 1 its target.
        steps: where in ``positions[:, :-1]``, read row by row, the inputs that have a target lie, ascending; unused
            entries at the end are batch x length. Most of a batch of short histories is padding: what works on one
            position at a time reads these alone. In a batch over several devices each has its own part of them, by
            their place in its own rows of `positions`.
        users: user numbers; -1 in rows that only fill an uneven last batch.
        media: modality -> raw inputs of the items (`live.RawBatch`), where its backbone is run in the step.
    """

    items: Int[Array, " distinct"]
    counts: Int[Array, " distinct"]
    positions: Int[Array, "batch length_and_target"]
    steps: Int[Array, " step"]
    users: Int[Array, " batch"]
    media: dict[str, Any] = struct.field(default_factory=dict)


@struct.dataclass
class HiddenStates:
    """Pooled hidden states of some items, one array a modality.

    Attributes:
        values: modality -> one array a selected layer, in the order of the config's layer list.
        present: modality -> whether the item has it.
        complete: static promise that every item of the catalogue has every modality, which lets the masks be skipped.
        trained: whether a backbone that made the values is being trained, so that gradients must reach them. Frozen
            states are never given one.
    """

    values: dict[str, tuple[Float[Array, "item width"], ...]]
    present: dict[str, Bool[Array, " item"]]
    complete: bool = struct.field(pytree_node=False, default=False)
    trained: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class ItemVectors:
    """What an item encoder returns.

    Attributes:
        vector: one vector an item.
        weights: share of each modality in the fused vector, columns in the config's order; None for encoders
            without modalities.
    """

    vector: Float[Array, "item width"]
    weights: Float[Array, "item modality"] | None = None


@struct.dataclass
class AddedTerms:
    """What an item encoder adds to a training step.

    Attributes:
        losses: added to the task's.
        metrics: beside the task's; arrays go to the run's history alone.
    """

    losses: dict[str, Float[Array, ""]] = struct.field(default_factory=dict)
    metrics: dict[str, Float[Array, ...]] = struct.field(default_factory=dict)
