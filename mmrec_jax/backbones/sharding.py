"""Tensor parallelism (arXiv 1909.08053): which parameters of an encoder are split over devices, and along what.

Queries, keys and values are split by heads, the feed-forward by its inner features, so that a block needs two sums
over the devices. The logical axes of parameters are data, and so is what each of them means on a mesh.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmrec_jax.backbones.transformer import TransformerConfig
from mmrec_jax.errors import ConfigError
from mmrec_jax.types import Params

LOGICAL_AXES: dict[str, tuple[str | None, ...]] = {
    r"(.*/)?query/dense/kernel": ("embed", "heads"),
    r"(.*/)?query/dense/bias": ("heads",),
    r"(.*/)?(key|value)/dense/kernel": ("embed", "key_heads"),
    r"(.*/)?(key|value)/dense/bias": ("key_heads",),
    r"(.*/)?attention_out/dense/kernel": ("heads", "embed"),
    r"(.*/)?attention/sub_norm/(scale|bias)": ("heads",),
    r"(.*/)?(up|gate)/dense/kernel": ("embed", "mlp"),
    r"(.*/)?(up|gate)/dense/bias": ("mlp",),
    r"(.*/)?down/dense/kernel": ("mlp", "embed"),
    r"(.*/)?feed_forward/sub_norm/(scale|bias)": ("mlp",),
    r"(.*/)?words/embedding": ("vocabulary", "embed"),
}
"""Pattern of a parameter's path -> the logical axis of each of its axes. Parameters of no pattern have none."""

MESH_AXES: dict[str, str | tuple[str, ...] | None] = {
    "heads": "model",
    "key_heads": "model",
    "mlp": "model",
    "vocabulary": "model",
    "embed": None,
}
"""Logical axis -> the axis of the mesh it is split over; None keeps it whole."""


Rules = Mapping[str, str | tuple[str, ...] | None]
"""Logical axis -> one axis of the mesh or several; None or () keeps it whole."""


def _axes(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def logical_axes(path: str) -> tuple[str | None, ...]:
    """The logical axes of the parameter at a path joined by "/"; () where it is kept whole."""
    return next((axes for pattern, axes in LOGICAL_AXES.items() if re.fullmatch(pattern, path)), ())


def parameter_shardings(shapes: Params, sizes: TransformerConfig, mesh: Mesh, rules: Rules = MESH_AXES) -> Params:
    """A NamedSharding for every parameter.

    An axis is kept whole where the mesh does not divide it; heads are never cut, so that keys and values of fewer
    heads than devices are on all of them.

    Args:
        shapes: the parameters, or their shapes.
        sizes: of the encoder's core.
        mesh: with `AxisType.Auto` axes.
        rules: logical axis -> axis of the mesh.

    Raises:
        ConfigError: a rule names an axis that the mesh lacks.
    """
    if unknown := {axis for axes in rules.values() for axis in _axes(axes) if axis not in mesh.shape}:
        raise ConfigError(
            f"sharding rules name the mesh axis {', '.join(sorted(unknown))}, but the mesh has "
            f"{', '.join(mesh.axis_names)}: name an axis of the mesh, or None to keep the parameters whole"
        )
    heads = {"heads": sizes.heads, "key_heads": sizes.key_heads or sizes.heads}

    def mesh_axes(logical: str | None, length: int) -> tuple[str, ...] | None:
        axes = _axes(rules.get(logical)) if logical else ()
        parts = math.prod(mesh.shape[axis] for axis in axes)
        divided = heads.get(logical or "", length) % parts == 0 and length % parts == 0
        return axes if axes and divided else None

    def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
        axes = [mesh_axes(logical, length) for logical, length in zip(logical_axes(path), shape, strict=False)]
        return NamedSharding(mesh, PartitionSpec(*axes))

    leaves = traverse_util.flatten_dict(shapes, sep="/")
    return traverse_util.unflatten_dict({path: sharding(path, x.shape) for path, x in leaves.items()}, sep="/")
