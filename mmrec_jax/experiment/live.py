"""Backbones of a run that are run in the step, and what they read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mmrec_jax.config import RunConfig

if TYPE_CHECKING:
    import polars as pl

    from mmrec_jax.live import LiveBackbones, LiveCatalogue


def load_live(config: RunConfig, *, begins: bool = True) -> LiveBackbones | None:
    """The backbones that are run in the step; None where there are none.

    Args:
        config: of the run.
        begins: whether a training may begin with them, which reads each method's `start`.

    Raises:
        BackboneError: one cannot be loaded.
        CheckpointError: what a method is to begin with cannot be read, or does not fit.
        ConfigError: a method, layers or pooling do not fit it.
    """
    if not config.methods:
        return None
    from mmrec_jax.live import LiveBackbones, live_backbone

    return LiveBackbones(
        {
            name: live_backbone(name, config.modalities[name], method, config.extraction, begins)
            for name, method in config.methods.items()
        }
    )


def live_catalogue(
    config: RunConfig, live: LiveBackbones, items: pl.DataFrame, media_root: Path, directory: Path, made_of: str
) -> LiveCatalogue:
    """Raw inputs of items, made on the first call and opened later.

    Args:
        config: of the run.
        live: its live backbones.
        items: one row an item.
        media_root: folder that media paths are relative to.
        directory: takes a folder for each modality, its preprocessing and `made_of`.
        made_of: tells these items from others.
    """
    from mmrec_jax.live import LiveCatalogue, prepare_inputs

    found = {}
    for name, part in live.backbones.items():
        modality, preprocess = config.modalities[name], part.backbone.preprocess
        limits = config.extraction.max_pixels, config.extraction.max_video_seconds
        about = json.dumps([modality.inputs[4:], preprocess.fingerprint, limits, made_of], sort_keys=True)
        folder = directory / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"
        found[name] = prepare_inputs(modality, preprocess, items, media_root, config.extraction, folder, name)
    return LiveCatalogue(found)
