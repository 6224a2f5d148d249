"""The extraction of hidden states, compiled for one chip of a topology."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
from jax.sharding import SingleDeviceSharding

from mmrec_jax.backbones.encode import model_for, pooled_states, tokens_of
from mmrec_jax.config import RunConfig
from mmrec_jax.planning.backbones import backbone_shapes, head_of, input_shapes
from mmrec_jax.planning.compile import Program, compile_program
from mmrec_jax.planning.topology import Topology, devices


@dataclass(frozen=True)
class ExtractionPlan:
    """One modality's encoder at work.

    Attributes:
        program: of one batch on one chip.
        items: in a batch.
    """

    program: Program
    items: float

    @property
    def rate(self) -> float:
        """Items a second and chip; 0 where no time is predicted."""
        seconds = self.program.costs.seconds
        return self.items / seconds if seconds else 0.0


def plan_extraction(config: RunConfig, topology: Topology) -> dict[str, ExtractionPlan]:
    """Modality -> its plan: of those whose states are kept in the store, and of live ones, whose states an evaluation
    computes for the whole catalogue.

    The chips of a process each encode a part of a batch, so that this program is that of one chip on any topology.
    """
    where = SingleDeviceSharding(devices(topology)[0])
    found = {}
    for name, modality in config.modalities.items():
        backbone = backbone_shapes(modality, config.methods.get(name))
        head = head_of(modality, backbone)
        rows = config.extraction.batch(modality.kind, topology.chip.platform)
        packs = bool(getattr(backbone.model, "packs", False))
        tokens = config.plan.tokens or modality.max_tokens
        items = float(rows)
        if packs and modality.kind == "text":
            # Rows of 64 or 128 tokens, the batch counting those of 64, are filled with as many texts as they take.
            items = rows * 64 / tokens
        inputs, _ = input_shapes(modality, backbone, int(items), tokens=tokens, packs=packs)
        function = partial(pooled_states, model_for(backbone, [head]), (head,), tokens_of(backbone))
        arguments = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), (backbone.params, inputs)
        )
        found[name] = ExtractionPlan(compile_program(f"encode {name}", function, arguments, topology), items)
    return found
