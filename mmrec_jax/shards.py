"""Arrays over the devices of a mesh, as a compiled step sees them: what lies where, and rows of other devices.

A step is the program of one device, on the whole batch. What works on one item at a time is left to the partitioner;
what needs other devices' rows is written down here, inside `jax.shard_map`, so that nothing but these rows moves.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Num

T = TypeVar("T")


@dataclass(frozen=True)
class Shards:
    """The mesh of a step and what is split over it; static in compiled programs.

    Attributes:
        mesh: with Auto axes.
        batch: axes of the mesh that users and items of a batch are split over.
        rows: axes of the mesh that rows of the catalogue are split over.
        negatives: `global` or `local`, see `parallel.ParallelConfig`.
        encode: `equal` or `own`, see there.
        messages: type of item vectors and their gradients on their way between devices.
    """

    mesh: Mesh
    batch: tuple[str, ...] = ("data",)
    rows: tuple[str, ...] = ("data", "model", "expert")
    negatives: str = "global"
    encode: str = "equal"
    messages: str = "float32"

    @property
    def own_devices(self) -> tuple[jax.Device, ...]:
        """Devices of this process."""
        here = jax.process_index()
        return tuple(device for device in self.mesh.devices.flat if device.process_index == here)

    @property
    def batch_parts(self) -> int:
        """In how many parts the batch is split."""
        return self._parts(self.batch)

    @property
    def own_groups(self) -> tuple[int, ...] | None:
        """Which parts of a batch devices of this process take; None for all."""
        parts = (self.batch_parts,)
        found = self.split(self.batch, self.batch_parts).addressable_devices_indices_map(parts).values()
        groups = sorted({index[0].indices(self.batch_parts)[0] for index in found if index})
        return None if not self.batch or len(groups) == self.batch_parts else tuple(groups)

    @property
    def row_parts(self) -> int:
        """In how many parts the catalogue's rows are split."""
        return self._parts(self.rows)

    @property
    def owners(self) -> int:
        """Among how many parts of the catalogue a batch's items are shared out, where devices encode what they have.

        Of the axes of the batch and of the rows one begins with the other. Where the batch has further ones, several
        parts of it have the same rows, and share the items of these equally.
        """
        return min(self.batch_parts, self.row_parts)

    def filled(self, rows: int) -> int:
        """Rows of the catalogue once it is filled up to what the mesh divides."""
        parts = self.divided.row_parts
        return -(-rows // parts) * parts

    def rows_of_owner(self, rows: int) -> int:
        """Catalogue rows of one of the `owners`, of so many before they are filled up: owner i has those from i times
        as many on."""
        return self.filled(rows) // self.owners

    @property
    def divided(self) -> Shards:
        """The same with rows over the axes of the batch too: for what is computed of all rows, by each device a part of
        those that it has."""
        return replace(self, rows=(*self.rows, *(axis for axis in self.batch if axis not in self.rows)))

    def own_rows(self, rows: int) -> tuple[slice, ...]:
        """Which of so many rows devices of this process have, once they are filled up: ranges in ascending order."""
        filled = self.filled(rows)
        found = self.split(self.rows, filled).addressable_devices_indices_map((filled,)).values()
        return tuple(slice(*ends) for ends in sorted({index[0].indices(filled)[:2] for index in found if index}))

    def of_own_rows(self, rows: int, parts: Sequence[np.ndarray]) -> Array:
        """An array of so many rows, filled up and split, of which this process gives the ranges of `own_rows` and the
        others theirs."""
        filled = self.filled(rows)
        shape, sharding = (filled, *parts[0].shape[1:]), self.split(self.rows, filled)
        part_of = {own.start: part for own, part in zip(self.own_rows(rows), parts, strict=True)}
        placed = [
            jax.device_put(part_of[index[0].indices(filled)[0]], device, may_alias=True)
            for device, index in sharding.addressable_devices_indices_map(shape).items()
            if index is not None
        ]
        return jax.make_array_from_single_device_arrays(shape, sharding, placed)

    def by_rows(self, whole: np.ndarray) -> Array:
        """A host array over the devices, filled up with zeros; each process needs its own rows of it only."""
        return self.of_own_rows(len(whole), [_filled_up(whole[part], part) for part in self.own_rows(len(whole))])

    def _parts(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)

    @property
    def whole(self) -> NamedSharding:
        """Of arrays that every device has."""
        return NamedSharding(self.mesh, PartitionSpec())

    def split(self, axes: tuple[str, ...], length: int) -> NamedSharding:
        """Of arrays whose first axis, of this length, is split over axes of the mesh; kept whole where the number of
        devices does not divide it."""
        return NamedSharding(self.mesh, PartitionSpec(axes if axes and length % self._parts(axes) == 0 else None))

    def by_batch(self, tree: T) -> T:
        """The tree with the first axis of each array split as the batch is; traceable."""
        return jax.tree.map(
            lambda leaf: lax.with_sharding_constraint(leaf, self.split(self.batch, leaf.shape[0])), tree
        )

    def map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """The function on each device's own part: `jax.shard_map` over all axes of the mesh."""
        return jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

    def gathered(self, own: Num[Array, "own ..."]) -> Num[Array, "all ..."]:
        """Inside `map`: the parts of all devices along the batch, one after another.

        They are gathered as blocks along an axis of their own: gradients come back by a sum of which each device gets
        its block, which XLA makes of blocks and not of rows in the middle of a tile.
        """
        return lax.all_gather(own, self.batch).reshape(-1, *own.shape[1:])

    def traced(self) -> contextlib.AbstractContextManager:
        """What is traced inside finds the mesh as `jax.sharding.get_abstract_mesh()`."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

    def take(
        self, arrays: Sequence[Num[Array, "row ..."]], ids: Int[Array, " item"], own: bool = False
    ) -> tuple[Array, ...]:
        """``array[ids]`` of arrays that are split by rows, split as the batch is (whole where it cannot be).

        Each device gathers the ids of those that it shares rows with, looks up the rows it has, and gets its own back
        summed over the devices, of which one has the row: so the rows of the batch are all that moves. Differentiable.

        Args:
            arrays: of one number of rows, which the mesh divides.
            ids: rows to look up.
            own: whether each part of `ids` names rows that the devices of that part of the batch have, and no others:
                then nothing is exchanged between parts. Others, such as the 0 that fills a part up, give zeros.
        """
        if not arrays:
            return ()
        batch = self.batch if ids.shape[0] % self.batch_parts == 0 else ()
        shared = () if own else tuple(axis for axis in batch if axis in self.rows)
        others = tuple(axis for axis in self.rows if axis not in batch)

        def looked_up(own: tuple[Array, ...], wanted: Array) -> tuple[Array, ...]:
            every = lax.all_gather(wanted, shared, tiled=True) if shared else wanted
            places = every - lax.axis_index(self.rows) * own[0].shape[0] if self.rows else every
            inside = (places >= 0) & (places < own[0].shape[0])
            # One past the end is filled with zeros; a negative index would count from the end.
            places = jnp.where(inside, places, own[0].shape[0])
            return tuple(self._summed(part.at[places].get(mode="fill", fill_value=0), shared, others) for part in own)

        rows, out = PartitionSpec(self.rows or None), PartitionSpec(batch or None)
        return self.map(looked_up, ((rows,) * len(arrays), out), (out,) * len(arrays))(tuple(arrays), ids)

    @staticmethod
    def _summed(found: Array, shared: tuple[str, ...], others: tuple[str, ...]) -> Array:
        """Each device's share of the sum over the devices of the axes `shared`, summed over those of `others`."""
        kind = found.dtype
        found = found.astype(jnp.int8) if kind == jnp.bool_ else found
        if shared:
            found = lax.psum_scatter(found, shared, tiled=True)
        if others:
            found = lax.psum(found, others)
        return found.astype(kind)


def _filled_up(found: np.ndarray, part: slice) -> np.ndarray:
    """What is there of a range of rows, with zeros below it."""
    if len(found) == part.stop - part.start:
        return found
    filled = np.zeros((part.stop - part.start, *found.shape[1:]), found.dtype)
    filled[: len(found)] = found
    return filled
