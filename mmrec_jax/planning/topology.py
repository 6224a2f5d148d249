"""Slices and clusters by name, and their devices, which only a compiler can use."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmrec_jax.errors import PlanningError
from mmrec_jax.planning.chips import CHIPS, H100_TARGET, Chip

EXAMPLES = "v5e:16x16, v6e:16x16, v5p:4x4x4, h100:1x8x8 (partitions x hosts x GPUs a host), or cpu:8"
_COUNT = "xla_force_host_platform_device_count"
_NEEDS = {"tpu": ("libtpu", "plan"), "cuda": ("jax_cuda12_plugin", "plan_gpu")}


@dataclass(frozen=True)
class Topology:
    """Chips of one kind and how they are connected.

    Attributes:
        chip: their kind.
        shape: TPU: chips along each axis of the slice. GPU: partitions, hosts, GPUs a host. CPU: devices.
    """

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As the flag has it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def per_host(self) -> int:
        """Chips that reach each other without the network between hosts."""
        return self.shape[-1] if self.chip.platform == "cuda" else self.chips

    def smaller(self, chips: int = 16) -> Topology | None:
        """A slice of the same kind with at most so many chips, to compare with; None where this is as small.

        The longest axis is divided by its smallest factor until it fits, in halves as a rule. Of a GPU cluster it has
        the most hosts that divide the cluster's, whole unless one alone is too much.
        """
        if self.chips <= chips or self.chip.platform == "cpu":
            return None
        if self.chip.platform == "cuda":
            parts = itertools.product(*map(_divisors, self.shape))
            fitting = [part for part in parts if math.prod(part) <= chips]
            whole = [part for part in fitting if part[2] == self.shape[2]]
            found = max(
                whole or [part for part in fitting if part[:2] == (1, 1)], key=lambda it: (math.prod(it), it[1])
            )
            return replace(self, shape=found)
        shape = list(self.shape)
        while math.prod(shape) > chips:
            longest = max(range(len(shape)), key=lambda axis: shape[axis])
            shape[longest] //= _divisors(shape[longest])[1]
        return replace(self, shape=tuple(shape))

    def larger(self, chips: int) -> Topology | None:
        """A slice of the same kind with at least so many chips: the shortest axis is doubled until it has them; of a
        GPU cluster, the hosts. None for CPUs, of which this machine has what it has."""
        if self.chip.platform == "cpu":
            return None
        shape = list(self.shape)
        while math.prod(shape) < chips:
            gpu = self.chip.platform == "cuda"
            shape[1 if gpu else min(range(len(shape)), key=lambda axis: shape[axis])] *= 2
        return replace(self, shape=tuple(shape))


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def parse_topology(name: str) -> Topology:
    """The topology of a name, such as `v5e:16x16`.

    Raises:
        PlanningError: an unknown chip, or a shape that no such chips come in.
    """
    found = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", name.strip().lower())
    if not found or found[1] not in CHIPS:
        raise PlanningError(f"--topology={name!r}: name a chip ({', '.join(CHIPS)}) and a shape: {EXAMPLES}.")
    chip, shape = CHIPS[found[1]], tuple(int(size) for size in found[2].split("x"))
    wanted = {"tpu": (chip.axes,), "cuda": (3,), "cpu": (1,)}[chip.platform]
    if len(shape) not in wanted or min(shape) < 1:
        raise PlanningError(
            f"--topology={name!r}: the shape of {chip.name} has {wanted[0]} sizes of at least 1: {EXAMPLES}."
        )
    if chip.host and shape[-1] > chip.host:
        raise PlanningError(
            f"--topology={name!r}: a host of {chip.name} has at most {chip.host} GPUs, and {shape[-1]} are asked for: "
            f"take more hosts, such as {chip.name}:1x{math.ceil(math.prod(shape) / chip.host)}x{chip.host}."
        )
    return Topology(chip, shape)


def prepare_process(topology: Topology) -> None:
    """Sets this process up to compile for chips that it has not got; before JAX is first used.

    Raises:
        PlanningError: the compiler is not installed.
    """
    if topology.chip.platform in _NEEDS:
        module, extra = _NEEDS[topology.chip.platform]
        if importlib.util.find_spec(module) is None:
            raise PlanningError(
                f"--topology={topology.name}: the compiler for it ({module}) is not installed: "
                f'pip install -e ".[{extra}]", or plan for cpu:8, which needs none.'
            )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    import jax

    try:
        # A process that plans has no use for accelerators of its own.
        jax.config.update("jax_platforms", "cpu")
        if topology.chip.platform == "cpu" and _COUNT not in os.environ.get("XLA_FLAGS", ""):
            jax.config.update("jax_num_cpu_devices", topology.chips)
    except RuntimeError:
        pass  # JAX runs already: `devices` finds out whether it has as many


def devices(topology: Topology) -> Sequence[Any]:
    """The topology's devices; nothing can be run or placed on those of other machines.

    Raises:
        PlanningError: the compiler is not installed or does not know this shape, or the process has fewer CPU devices.
    """
    prepare_process(topology)
    import jax
    from jax.experimental import topologies

    platform, shape = topology.chip.platform, "x".join(map(str, topology.shape))
    if platform == "cpu":
        found = jax.devices("cpu")
        if len(found) < topology.chips:
            raise PlanningError(
                f"--topology={topology.name}: this process has {len(found)} CPU devices; set "
                f"XLA_FLAGS=--{_COUNT}={topology.chips}."
            )
        return found[: topology.chips]
    try:
        with _Quiet():
            jax.devices("cpu")
            if platform == "cuda":
                described = topologies.get_topology_desc(
                    platform="cuda", topology_name="", target_config=H100_TARGET, topology=shape
                )
            else:
                described = topologies.get_topology_desc(platform="tpu", topology_name=f"{topology.chip.name}:{shape}")
    except Exception as error:  # whatever the plugin raises for a shape that it does not know
        raise PlanningError(f"--topology={topology.name}: the compiler does not know it: {error}") from error
    return described.devices


class _Quiet:
    """Keeps what the TPU library prints about the machine it is not on out of the terminal."""

    def __enter__(self) -> None:
        self._kept = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._kept, 2)
        os.close(self._kept)
