"""Strict loading of safetensors weights: every tensor is mapped, on a named ignore list, or an error."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from mmrec_jax.errors import BackboneError
from mmrec_jax.types import Params

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD = re.compile(r"[A-Za-z0-9_][\w.-]*\.safetensors")


@dataclass(frozen=True)
class Weight:
    """Where one parameter comes from.

    Attributes:
        target: path in the Flax parameters, joined by "/".
        source: the tensor's name in the file, as `WeightMap.name` gives it; several where one parameter is
            computed from more than one tensor.
        convert: turns the sources' layout into the target's.
        module: of a projection's kernel, the module of transformers that has it, where the source's name does not
            tell it: transformers renames and splits the tensors of some families as it loads them.
    """

    target: str
    source: str | tuple[str, ...]
    convert: Callable[..., np.ndarray] = field(default=lambda tensor: tensor)
    module: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The source tensors' names."""
        return (self.source,) if isinstance(self.source, str) else self.source


@dataclass(frozen=True)
class WeightMap:
    """All parameters of a family, and what may be left unread.

    Attributes:
        weights: one entry a parameter.
        ignored: pattern of a source name -> why it is not needed.
        prefix: what a checkpoint of a larger model (with a task's head) puts before the encoder's names.
        renamed: pattern in an older checkpoint's names -> what stands there in today's.
    """

    weights: tuple[Weight, ...]
    ignored: dict[str, str]
    prefix: str = ""
    renamed: dict[str, str] = field(default_factory=dict)

    def name(self, original: str) -> str:
        """The name in this map of a tensor in a file."""
        name = original.removeprefix(self.prefix)
        for pattern, today in self.renamed.items():
            name = re.sub(pattern, today, name)
        return name


def transpose(tensor: np.ndarray) -> np.ndarray:
    """torch's [out, in] to Flax's [in, out]."""
    return np.ascontiguousarray(tensor.T)


def dense(target: str, source: str, bias: bool = True, module: str = "") -> list[Weight]:
    """A torch Linear as a Flax Dense."""
    made = [Weight(f"{target}/kernel", f"{source}.weight", transpose, module)]
    return [*made, Weight(f"{target}/bias", f"{source}.bias")] if bias else made


def layer_norm(target: str, source: str) -> list[Weight]:
    """A torch LayerNorm as a Flax LayerNorm."""
    return [Weight(f"{target}/scale", f"{source}.weight"), Weight(f"{target}/bias", f"{source}.bias")]


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of safetensors files by name, floating ones as float32; each is read when it is asked for.

    The format's own reader bounds the header and checks that offsets, shapes and types fill a file exactly.
    """

    def __init__(self, files: Sequence[Path]):
        """Opens the files.

        Raises:
            BackboneError: a file is not a sound safetensors file, or two of them have a tensor of the same name.
        """
        self._files: dict[str, Any] = {}  # safetensors has no type for an open file
        for path in files:
            try:
                opened = safe_open(path, framework="numpy")
            except SafetensorError as error:
                raise BackboneError(f"{path} is not a sound safetensors file ({error}): fetch it again") from error
            for name in opened.keys():  # noqa: SIM118 (not a mapping)
                if name in self._files:
                    raise BackboneError(f"{path.parent}: tensor {name} is in two of its files: fetch them again")
                self._files[name] = opened

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._files[name].get_tensor(name)
        # bfloat16 is not of numpy's own floating kinds, hence the test by name.
        floating = tensor.dtype.name in {"float16", "bfloat16", "float32", "float64"}
        return tensor.astype(np.float32, copy=False) if floating else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a backbone: one, or those that an index names, in the order of their names.

    Raises:
        BackboneError: there are none, or the index is damaged, names a file that is absent or lies elsewhere.
    """
    whole, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if whole.is_file():
        return [whole]
    if not index.is_file():
        pickled = {".bin", ".pt", ".pth", ".h5", ".msgpack"}
        others = sorted(p.name for p in directory.glob("*") if p.suffix in pickled)
        found = f"; it has {', '.join(others)}, which cannot be read safely" if others else ""
        raise BackboneError(
            f"{directory} has no {WEIGHTS_FILE}{found}: save the model as safetensors "
            "(transformers: model.save_pretrained(directory))"
        )
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        foreign = [name for name in names if not SHARD.fullmatch(name)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(f"{index} is not a sound index of weight files ({error!r}): fetch it again") from error
    if foreign or not names:
        raise BackboneError(f"{index} must name safetensors files beside it, and names {foreign or 'none'}")
    if absent := [name for name in names if not (directory / name).is_file()]:
        raise BackboneError(f"{directory} lacks {', '.join(absent)}, named in {INDEX_FILE}: fetch the folder again")
    return [directory / name for name in names]


def map_weights(
    tensors: Mapping[str, np.ndarray],
    mapping: WeightMap,
    expected: Params,
    where: str,
    finish: Callable[[str, np.ndarray], Any] = lambda path, made: jnp.asarray(made),
) -> Params:
    """Arranges source tensors as Flax parameters, one after another.

    Args:
        tensors: the files' content.
        mapping: the family's weight map.
        expected: the parameters' shapes, as `jax.eval_shape` of the module's init gives them.
        where: the file's or folder's name for the error.
        finish: puts a parameter, named by its path, where it is to be.

    Raises:
        BackboneError: tensors are missing, left over, or of another shape; all of them are listed.
    """
    named = {mapping.name(original): original for original in tensors}
    shapes = {"/".join(path): leaf.shape for path, leaf in traverse_util.flatten_dict(expected).items()}
    used = {source for weight in mapping.weights for source in weight.sources}
    problems = [f"no tensor fills parameter {name}" for name in shapes.keys() - {w.target for w in mapping.weights}]
    problems += [
        f"tensors {named[name]} and {original} are one and the same parameter"
        for original in tensors
        if named[name := mapping.name(original)] != original
    ]
    problems += [
        f"tensor {name} {list(tensors[original].shape)} has no place in the model"
        for name, original in named.items()
        if name not in used and not any(re.fullmatch(pattern, name) for pattern in mapping.ignored)
    ]
    params = {}
    for weight in mapping.weights:
        if missing := [source for source in weight.sources if source not in named]:
            problems += [f"tensor {source} is missing" for source in missing]
            continue
        read = [tensors[named[source]] for source in weight.sources]
        if wrong := [(s, t.dtype) for s, t in zip(weight.sources, read, strict=True) if t.dtype != np.float32]:
            problems += [f"tensor {source} is of type {dtype}, not floating point" for source, dtype in wrong]
            continue
        try:
            made = weight.convert(*read)
        except (ValueError, IndexError):
            made = None
        if made is None or made.shape != shapes.get(weight.target):
            given = " and ".join(f"{s} {list(t.shape)}" for s, t in zip(weight.sources, read, strict=True))
            problems.append(
                f"tensor {given} does not fit parameter {weight.target} {list(shapes.get(weight.target, ()))}"
            )
            continue
        # Once something is wrong, the rest is read for the list of problems only.
        if not problems:
            params[weight.target] = finish(weight.target, made)
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
