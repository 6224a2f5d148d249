"""The mesh of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from mmrec_jax.parallel.config import AXES, ParallelConfig


def make_mesh(config: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh with axes `data`, `model` and `expert`, all Auto.

    Args:
        config: sizes of the axes.
        devices: real ones or those of a topology; None for all of the run.

    Raises:
        ConfigError: the sizes do not fit the number of devices.
    """
    found = list(jax.devices() if devices is None else devices)
    return jax.make_mesh(config.shape(len(found)), AXES, devices=found, axis_types=(AxisType.Auto,) * len(AXES))


def run_mesh(config: ParallelConfig) -> Mesh | None:
    """The mesh of a run; None where it has one device.

    A process by itself may use fewer devices than it has, where all sizes are given; several use all.

    Raises:
        ConfigError: the sizes do not fit the number of devices.
    """
    devices = jax.devices()
    wanted = math.prod(config.sizes)
    if jax.process_count() == 1 and -1 not in config.sizes and wanted <= len(devices):
        devices = devices[:wanted]
    if len(devices) == 1 and all(size in (-1, 1) for size in config.sizes):
        return None
    return make_mesh(config, devices)
