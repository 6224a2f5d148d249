"""Strict loading of safetensors weights: every tensor is mapped, on a named ignore list, or an error."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from mmrec_jax.errors import BackboneError
from mmrec_jax.types import Params

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class Weight:
    """Where one parameter comes from.

    Attributes:
        target: path in the Flax parameters, joined by "/".
        source: the tensor's name in the file, without the optional prefix.
        convert: turns the source's layout into the target's.
    """

    target: str
    source: str
    convert: Callable[[np.ndarray], np.ndarray] = field(default=lambda tensor: tensor)


@dataclass(frozen=True)
class WeightMap:
    """All parameters of a family, and what may be left unread.

    Attributes:
        weights: one entry a parameter.
        ignored: pattern of a source name -> why it is not needed.
        prefix: what a checkpoint of a larger model (with a task's head) puts before the encoder's names.
    """

    weights: tuple[Weight, ...]
    ignored: dict[str, str]
    prefix: str = ""


def transpose(tensor: np.ndarray) -> np.ndarray:
    """torch's [out, in] to Flax's [in, out]."""
    return np.ascontiguousarray(tensor.T)


def dense(target: str, source: str, bias: bool = True) -> list[Weight]:
    """A torch Linear as a Flax Dense."""
    made = [Weight(f"{target}/kernel", f"{source}.weight", transpose)]
    return [*made, Weight(f"{target}/bias", f"{source}.bias")] if bias else made


def layer_norm(target: str, source: str) -> list[Weight]:
    """A torch LayerNorm as a Flax LayerNorm."""
    return [Weight(f"{target}/scale", f"{source}.weight"), Weight(f"{target}/bias", f"{source}.bias")]


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads every tensor of a safetensors file, floating ones as float32.

    The format's own reader bounds the header and checks that offsets, shapes and types fill the file exactly.

    Raises:
        BackboneError: the file is absent, or is not a sound safetensors file.
    """
    if not path.is_file():
        others = sorted(p.name for p in path.parent.glob("*") if p.suffix in {".bin", ".pt", ".pth", ".h5", ".msgpack"})
        found = f"; it has {', '.join(others)}, which cannot be read safely" if others else ""
        raise BackboneError(
            f"{path.parent} has no {path.name}{found}: save the model as safetensors "
            "(transformers: model.save_pretrained(directory))"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise BackboneError(f"{path} is not a sound safetensors file ({error}): fetch it again") from error
    # bfloat16 is not of numpy's own floating kinds, hence the test by name.
    floating = {"float16", "bfloat16", "float32", "float64"}
    return {
        name: tensor.astype(np.float32, copy=False) if tensor.dtype.name in floating else tensor
        for name, tensor in tensors.items()
    }


def map_weights(tensors: dict[str, np.ndarray], mapping: WeightMap, expected: Params, where: str) -> Params:
    """Arranges source tensors as Flax parameters.

    Args:
        tensors: the file's content.
        mapping: the family's weight map.
        expected: the parameters' shapes, as `jax.eval_shape` of the module's init gives them.
        where: the file's name for the error.

    Raises:
        BackboneError: tensors are missing, left over, or of another shape; all of them are listed.
    """
    # A checkpoint with a task's head carries the prefix on the encoder's names only.
    named = {name.removeprefix(mapping.prefix): tensor for name, tensor in tensors.items()}
    shapes = {"/".join(path): leaf.shape for path, leaf in traverse_util.flatten_dict(expected).items()}
    used = {weight.source for weight in mapping.weights}
    problems = [f"no tensor fills parameter {name}" for name in shapes.keys() - {w.target for w in mapping.weights}]
    problems += [
        f"tensor {name} {list(tensor.shape)} has no place in the model"
        for name, tensor in named.items()
        if name not in used and not any(re.fullmatch(pattern, name) for pattern in mapping.ignored)
    ]
    params = {}
    for weight in mapping.weights:
        if weight.source not in named:
            problems.append(f"tensor {weight.source} is missing")
            continue
        tensor = named[weight.source]
        if tensor.dtype != np.float32:
            problems.append(f"tensor {weight.source} is of type {tensor.dtype}, not floating point")
            continue
        try:
            made = weight.convert(tensor)
        except (ValueError, IndexError):
            made = None
        if made is None or made.shape != shapes.get(weight.target):
            problems.append(
                f"tensor {weight.source} {list(tensor.shape)} does not fit parameter {weight.target} "
                f"{list(shapes.get(weight.target, ()))}"
            )
            continue
        params[weight.target] = made
    if problems:
        raise BackboneError(
            f"{where} does not fit its config.json ({len(problems)} problems): " + "; ".join(sorted(problems))
        )
    return traverse_util.unflatten_dict(params, sep="/")


def sha256_of(paths: Iterable[Path]) -> str:
    """One hex digest over the contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
