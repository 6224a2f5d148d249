"""The mesh of a run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from mmrec_jax.errors import ConfigError
from mmrec_jax.parallel.config import AXES, ParallelConfig


def make_mesh(config: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh with axes `data`, `model` and `expert`, all Auto.

    Args:
        config: sizes of the axes.
        devices: real ones or those of a topology; None for all of the run.

    Raises:
        ConfigError: the sizes do not fit the number of devices, or that of the slices.
    """
    found = list(jax.devices() if devices is None else devices)
    shape = config.shape(len(found))
    types = (AxisType.Auto,) * len(AXES)
    slices = _slices(found)
    if len(slices) == 1:
        return jax.make_mesh(shape, AXES, devices=found, axis_types=types)
    return Mesh(arrange_slices(shape, slices), AXES, axis_types=types)


def _slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """Devices by slice. JAX gives GPUs and CPUs an index of their slice too: it is that of their host."""
    found: dict[int, list[jax.Device]] = defaultdict(list)
    for device in devices:
        found[getattr(device, "slice_index", None) or 0].append(device)
    return [found[index] for index in sorted(found)]


def arrange_slices(shape: tuple[int, ...], slices: Sequence[Sequence[jax.Device]]) -> np.ndarray:
    """The devices of several slices in the shape of a mesh, slice after slice: `data` alone goes from one to the next.

    Hosts of GPUs are taken in order where `data` is no multiple of their number: other axes go between hosts then.

    Raises:
        ConfigError: `data` is no multiple of the number of TPU slices, or these differ in size.
    """
    each = (shape[0] // len(slices), *shape[1:])
    if shape[0] % len(slices) == 0 and all(len(part) == math.prod(each) for part in slices):
        split = slices[0][0].platform == "tpu"
        parts = [mesh_utils.create_device_mesh(each, part, allow_split_physical_axes=split) for part in slices]
        return np.concatenate(parts)
    if slices[0][0].platform == "tpu":
        sizes = ", ".join(str(len(part)) for part in slices)
        raise ConfigError(
            f"parallel.data={shape[0]} on {len(slices)} slices of {sizes} chips: give a multiple of the number of "
            "slices, all of one size, since only `data` may go from one slice to another."
        )
    ordered = np.empty(math.prod(shape), object)
    ordered[:] = [device for part in slices for device in part]
    return ordered.reshape(shape)


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
