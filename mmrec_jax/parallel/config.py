"""The parallel part of the config: the mesh, and what lies along which of its axes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmrec_jax.errors import ConfigError

AXES = ("data", "model", "expert")
"""Axes of the mesh, in the order of its devices: neighbours along `expert` are next to each other."""
LOGICAL = ("batch", "rows", "experts", "heads", "key_heads", "mlp", "vocabulary", "embed")
"""Logical axes that rules may name."""
RULES = (
    ("batch", "data"),
    ("rows", "data+model+expert"),
    ("experts", "expert"),
    ("heads", "model"),
    ("key_heads", "model"),
    ("mlp", "model"),
    ("vocabulary", "model"),
    ("embed", ""),
)


@dataclass(frozen=True)
class ParallelConfig:
    """How a run is spread over devices. One device is no mesh: the program is that of a laptop.

    Attributes:
        data, model, expert: devices along each axis of the mesh; -1, for one of them at most, is what is left.
        rules: (logical axis, axes of the mesh joined by "+") pairs; "" keeps the axis whole. They are laid over the
            defaults: `batch` (users and items of a batch), `rows` (of the catalogue: hidden states, item vectors, ID
            tables), `experts`, and, of the weights of backbones that are run in the step, `heads`, `key_heads`,
            `mlp`, `vocabulary` and `embed` (`embed` over `data` is the fully sharded layout).
        encode: which items of a batch a device encodes: an `equal` share, for which states move between devices, or its
            `own`, those whose states it has. Own items move nothing, which is what makes a batch scale to many devices;
            but their number differs, and all are filled up to the largest: for catalogues whose popular items are not
            next to each other. With `rows` over fewer axes than `batch`, devices that have the same rows share their
            items equally: the store takes more memory, and less is filled up.
        negatives: `global` (the whole step's items, as on one device) or `local` (those of the users on the same
            device along `batch`, to which only the vectors of these are sent).
        messages: type in which item vectors go to all devices, and their gradients back: `float32`, or `bfloat16`, of
            half the bytes. A TPU multiplies float32 as bfloat16 by default, so that scores lose nothing there.
        timeout_seconds: of several processes, how long one may be late at the start or silent later on before it
            counts as lost, which ends the others.
        stuck_seconds: of several processes, how long one that lives may be behind the others' step boundaries, none of
            which advances, before it counts as lost too. Longer than anything that one process does by itself between
            two steps, such as writing a checkpoint.
    """

    data: int = -1
    model: int = 1
    expert: int = 1
    rules: tuple[tuple[str, str], ...] = ()
    negatives: str = "global"
    encode: str = "equal"
    messages: str = "float32"
    timeout_seconds: float = 300.0
    stuck_seconds: float = 1800.0

    def __post_init__(self):
        sizes = self.sizes
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ConfigError(
                f"parallel.data={self.data}, parallel.model={self.model}, parallel.expert={self.expert}: give sizes of "
                "at least 1, and -1 (what is left) to one of them at most."
            )
        if self.negatives not in ("global", "local"):
            raise ConfigError(f"parallel.negatives={self.negatives!r}: choose global or local.")
        if self.encode not in ("equal", "own"):
            raise ConfigError(f"parallel.encode={self.encode!r}: choose equal or own.")
        if self.messages not in ("float32", "bfloat16"):
            raise ConfigError(f"parallel.messages={self.messages!r}: choose float32 or bfloat16.")
        batch, rows = self.axes("batch"), self.axes("rows")
        shorter = min(len(batch), len(rows))
        if self.encode == "own" and (not batch or batch[:shorter] != rows[:shorter]):
            raise ConfigError(
                f"parallel.encode='own': of the axes of the rows, {rows}, and those of the batch, {batch}, one must "
                "begin with the other, so that every part of a batch has rows of its own, or several parts the same."
            )
        for key in ("timeout_seconds", "stuck_seconds"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"parallel.{key}={getattr(self, key)}: give a number of seconds above 0.")
        for logical, axes in self.rules:
            unknown = [axis for axis in _parts(axes) if axis not in AXES]
            if logical not in LOGICAL or unknown:
                raise ConfigError(
                    f"parallel.rules: {(logical, axes)!r} names {unknown[0] if unknown else logical!r}; the logical "
                    f"axes are {', '.join(LOGICAL)}, and those of the mesh {', '.join(AXES)}, joined by '+'."
                )
            if len(set(_parts(axes))) != len(_parts(axes)):
                raise ConfigError(f"parallel.rules: {(logical, axes)!r} names an axis of the mesh twice.")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Devices along each of `AXES`, as configured."""
        return self.data, self.model, self.expert

    def axes(self, logical: str) -> tuple[str, ...]:
        """Axes of the mesh that a logical axis is split over; () keeps it whole."""
        return _parts((dict(RULES) | dict(self.rules))[logical])

    def shape(self, devices: int) -> tuple[int, int, int]:
        """Devices along each of `AXES`, of so many.

        Raises:
            ConfigError: the sizes do not make up that many devices.
        """
        given = math.prod(size for size in self.sizes if size != -1)
        told = ", ".join(f"parallel.{axis}={size}" for axis, size in zip(AXES, self.sizes, strict=True))
        if -1 in self.sizes:
            if devices % given:
                raise ConfigError(f"{told}: {given} does not divide the {devices} devices that there are.")
            data, model, expert = (devices // given if size == -1 else size for size in self.sizes)
            return data, model, expert
        if given != devices:
            raise ConfigError(
                f"{told} make {given} devices, and there are {devices}: change a size, or give -1 to one of them."
            )
        return self.sizes


def _parts(axes: str) -> tuple[str, ...]:
    return tuple(axes.split("+")) if axes else ()
