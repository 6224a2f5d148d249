"""Backbones inside the step: the raw inputs of a catalogue, looked up by batches, and their hidden states."""

from mmrec_jax.live.backbone import LiveBackbone, live_backbone
from mmrec_jax.live.catalogue import LiveBackbones, LiveCatalogue
from mmrec_jax.live.inputs import RawInputs, prepare_inputs
from mmrec_jax.live.stream import LiveStream

__all__ = [
    "LiveBackbone",
    "LiveBackbones",
    "LiveCatalogue",
    "LiveStream",
    "RawInputs",
    "live_backbone",
    "prepare_inputs",
]
