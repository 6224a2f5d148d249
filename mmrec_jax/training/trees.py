"""Parameter trees by name: a leaf's name is the '/'-joined path that leads to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mmrec_jax.share import OwnRows


def path_name(path: tuple) -> str:
    """The '/'-joined name of a leaf, e.g. `items/towers/poster_0/down/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of any pytree by name, in the tree's own order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nested(named: Mapping[str, Any]) -> dict:
    """The nested dict whose leaves have these names: the form in which trees are stored."""
    tree: dict = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree


def like(template: Any, named: Mapping[str, Any]) -> Any:
    """A tree of `template`'s structure with the leaves of `named`.

    Raises:
        KeyError: a leaf of the template has no counterpart.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: named[path_name(path)], template)


def host_copy(tree: Any) -> Any:
    """The tree as numpy arrays that own their memory.

    On CPU `jax.device_get` may hand out views of device buffers, which a later donated step would write over.
    """
    return jax.tree.map(lambda leaf: np.array(leaf), jax.device_get(tree))


def placed(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """A host array, or this process's rows of one, on the devices of a sharding, those of other processes among them:
    each gets its part of it."""
    if not isinstance(leaf, OwnRows):
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        leaf = np.asarray(leaf)
    own = sharding.addressable_devices_indices_map(leaf.shape)
    # Each part is asked for by itself: inside the training loop nothing else may be moved.
    parts = [jax.device_put(leaf[part], device) for device, part in own.items()]
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)
