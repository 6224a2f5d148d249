"""The JSON manifest of a checkpoint: what it is of, how far it is, and a checksum of every leaf."""

from __future__ import annotations

import json
import platform
import zlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np

import mmrec_jax
from mmrec_jax.errors import CheckpointError
from mmrec_jax.training.trees import named_leaves

FORMAT = 1
UNCOMPARED = "info"  # the section of a run's description that may differ between a checkpoint and its reader


def build(run: Mapping, progress: Mapping, trees: Mapping[str, Any]) -> dict:
    """The manifest of numpy trees.

    Args:
        run: what is trained, as its caller describes it (system, modalities, data, config ...): plain JSON
            values.
        progress: position and early-stopping state of the run.
        trees: name of each stored tree -> the tree.
    """
    body = {
        "format": FORMAT,
        "run": run,
        "progress": progress,
        "versions": {"mmrec_jax": mmrec_jax.__version__, "python": platform.python_version()}
        | {package: metadata.version(package) for package in ("jax", "flax", "optax", "orbax-checkpoint")},
        "parameters": describe(trees["params"]),
        "dtypes": {name: jax.tree.map(lambda leaf: str(leaf.dtype), tree) for name, tree in trees.items()},
        "checksums": {name: checksums(tree) for name, tree in trees.items()},
    }
    body = json.loads(json.dumps(body))
    return body | {"crc32": _own_checksum(body)}


def describe(params: Any) -> dict[str, str]:
    """Parameter name -> its dtype and shape, as text."""
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named_leaves(params).items()}


def checksums(tree: Any) -> dict[str, int]:
    """Leaf name -> crc32 of its bytes."""
    return {
        name: zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
        for name, leaf in named_leaves(tree).items()
    }


def verify(manifest: Mapping, trees: Mapping[str, Any]) -> None:
    """Compares trees with the manifest's checksums, and the manifest with its own.

    Raises:
        CheckpointError: names the leaves whose bytes are not those that were saved.
    """
    body = {key: value for key, value in manifest.items() if key != "crc32"}
    if manifest.get("crc32") != _own_checksum(body):
        raise CheckpointError("the manifest's own checksum does not fit")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"format {manifest['format']}, this version of mmrec_jax reads {FORMAT}")
    for name, tree in trees.items():
        expected, found = manifest["checksums"][name], checksums(tree)
        wrong = sorted(leaf for leaf in expected.keys() | found.keys() if expected.get(leaf) != found.get(leaf))
        if wrong:
            raise CheckpointError(f"{name}: the bytes of {len(wrong)} leaves changed, first {wrong[0]}")


def _own_checksum(body: Mapping) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def completed(saved: Mapping, run: Mapping) -> Mapping:
    """A checkpoint's description, with keys that it lacks because its writer did not know them yet, and without values
    that nothing reads.

    Args:
        saved: the checkpoint's.
        run: description of what is wanted; its `info` may have `defaults`: section -> what each key counts as where a
            checkpoint has the section without it; and `unread`: section -> keys that are no difference.
    """
    info = run.get(UNCOMPARED, {})
    defaults = json.loads(json.dumps(info.get("defaults", {})))
    sections = {name: values for name, values in defaults.items() if isinstance(saved.get(name), Mapping)}
    unread = {name: {key: run[name][key] for key in info.get("unread", {}).get(name, ())} for name in sections}
    return {**saved, **{name: values | saved[name] | unread[name] for name, values in sections.items()}}


def differences(saved: Any, wanted: Any, path: str = "") -> list[str]:
    """What differs between two descriptions, one line a value: `model.width: checkpoint 64, now 128`.

    The top-level section `info` is left out: it is for the reader, not for comparison.
    """
    wanted = json.loads(json.dumps(wanted)) if not path else wanted
    if isinstance(saved, Mapping) and isinstance(wanted, Mapping):
        keys = sorted(saved.keys() | wanted.keys())
        lines = []
        for key in keys:
            if path or key != UNCOMPARED:
                name = f"{path}.{key}" if path else key
                lines += differences(saved.get(key, "(absent)"), wanted.get(key, "(absent)"), name)
        return lines
    return [] if saved == wanted else [f"{path}: checkpoint {saved!r}, now {wanted!r}"]


def check(manifest: Mapping, run: Mapping | None, params: Any | None, where: str) -> None:
    """Refuses a checkpoint of something else.

    Args:
        manifest: the checkpoint's.
        run: description of what is wanted; None compares nothing.
        params: parameters (or their shapes) of what is wanted; None compares nothing.
        where: what to call the checkpoint in the message.

    Raises:
        CheckpointError: names every difference of the descriptions and of the parameters' shapes.
    """
    lines = [] if run is None else differences(completed(manifest["run"], run), run)
    if params is not None:
        lines += differences(manifest["parameters"], describe(params), "parameter")
    if lines:
        shown = lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else [])
        raise CheckpointError(
            f"{where} is of something else than what is asked for:\n  "
            + "\n  ".join(shown)
            + "\nChange the config back or choose another --workdir; to begin with its parameters: warm_start()"
        )
