"""LoRA in the file layout of the `peft` library: adapter_model.safetensors and adapter_config.json.

Names are those of transformers' modules, by the family's weight map, so that a `peft` model over transformers'
`AutoModel` of the same checkpoint reads them; those of the backbone's files are read too. Nothing is guessed: missing,
further and misshapen tensors are errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mmrec_jax.adapters.config import MethodConfig
from mmrec_jax.backbones.backbone import Backbone
from mmrec_jax.backbones.transformer import PROJECTIONS
from mmrec_jax.backbones.weights import transpose
from mmrec_jax.errors import CheckpointError, ConfigError
from mmrec_jax.types import Params

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROOT = "base_model.model."  # what peft puts before the names of the model that it wraps
PLACE = re.compile(r"(?P<block>.*block_(?P<layer>\d+))/(?:.*/)?(?P<place>\w+)/dense/kernel")
MATRICES = {"a": "lora_A", "b": "lora_B"}  # our names of them -> those of peft
REFUSED = (
    *("use_rslora", "use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "rank_pattern", "alpha_pattern"),
    *("modules_to_save", "layer_replication", "target_parameters", "trainable_token_indices", "megatron_config"),
    *("alora_invocation_tokens", "use_bdlora", "velora_config", "monteclora_config", "arrow_config", "kasa_config"),
)
"""Keys of adapter_config.json that make another computation of it, unless they are empty."""
REFUSED_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights`, or their beginnings, by which `peft` takes something from the backbone's own weights:
the matrices belong to the changed ones, which the folder does not hold."""


@dataclass(frozen=True)
class _Projection:
    """A projection of the backbone: names of its module, transformers' first, and its kernel's shape, [in, out]."""

    names: tuple[str, ...]
    kernel: tuple[int, int]

    @property
    def module(self) -> str:
        return self.names[0]

    def shapes(self, rank: int) -> dict[str, tuple[int, int]]:
        """Of LoRA's matrices beside it."""
        return {"a": (self.kernel[0], rank), "b": (rank, self.kernel[1])}


def export_lora(
    directory: str | Path, backbone: Backbone, method: MethodConfig, added: Params, *, prefix: str | None = None
) -> None:
    """Writes LoRA's matrices and their config.

    Args:
        directory: made where it does not exist.
        backbone: that they are in.
        method: how they were made.
        added: the trained part inside the backbone, `params["embedded"][modality]`.
        prefix: before the backbone's own names, where `peft` is to wrap another model around it than `AutoModel`
            ("bert." for AutoModelForMaskedLM). None is what `AutoModel` has there: "text_model." or "vision_model."
            where the backbone is a tower of two (CLIP, SigLIP), otherwise nothing.

    Raises:
        ConfigError: the method is no LoRA, or `added` is not what it trains in the backbone: names all that is wrong.
    """
    if method.kind != "lora":
        raise ConfigError(f"peft's layout is written for kind='lora', not for {method.kind!r}.")
    projections, tensors, modules = _projections(backbone), {}, []
    flat = _checked(added, projections, method, backbone.spec)
    for kernel in sorted({_kernel_of(path) for path in flat}):
        modules.append((backbone.family.tower if prefix is None else prefix) + projections[kernel].module)
        for matrix, theirs in MATRICES.items():
            # torch's Linear keeps [out, in]: lora_A is [rank, in], lora_B [out, rank].
            tensor = transpose(np.asarray(flat[_added(kernel, matrix)], np.float32))
            tensors[f"{ROOT}{modules[-1]}.{theirs}.weight"] = tensor
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": backbone.spec,
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": method.dropout,
        "bias": "none",
        # A pattern is matched against whole names; of a list, any name that ends in one of it would be a target.
        "target_modules": "|".join(re.escape(module) for module in modules),
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def import_lora(directory: str | Path, backbone: Backbone) -> tuple[MethodConfig, Params]:
    """Reads LoRA's matrices for a backbone: the method they are of, and the part that is trained.

    Names may begin as the backbone's own or, as those of larger models do, with its family's prefix ("bert.").

    Raises:
        CheckpointError: a file is absent or unsound, or tensors are missing, further or misshapen: names all of them.
        ConfigError: the config asks for something else than plain LoRA.
    """
    folder = Path(directory)
    config = _read_config(folder / CONFIG)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise CheckpointError(f"{folder / CONFIG}: r={rank!r} and lora_alpha={alpha!r} must be numbers.")
    projections = _projections(backbone)
    kernels = {name: path for path, known in projections.items() for name in known.names}
    found: dict[str, Any] = {}
    problems = []
    for name, tensor in _read_tensors(folder / WEIGHTS).items():
        module, _, matrix = name.removeprefix(ROOT).removesuffix(".weight").rpartition(".")
        kernel = kernels.get(module) or kernels.get(module.removeprefix(_prefix(backbone)))
        if kernel is None or matrix not in MATRICES.values() or not name.startswith(ROOT):
            problems.append(f"tensor {name} {list(tensor.shape)} has no place in the backbone")
            continue
        ours = "a" if matrix == MATRICES["a"] else "b"
        expected = projections[kernel].shapes(rank)[ours][::-1]
        if tensor.shape != expected:
            problems.append(f"tensor {name} {list(tensor.shape)} should be {list(expected)}")
        if _added(kernel, ours) in found:
            problems.append(f"tensor {name} is of the same matrix as another")
        found[_added(kernel, ours)] = jnp.asarray(transpose(tensor))
    problems += _halves(found)
    places = {path: _place(_kernel_of(path)) for path in found}
    targets, layers = sorted({place for place, _ in places.values()}), sorted({layer for _, layer in places.values()})
    wanted = {path for path in projections if _place(path) in _product(targets, layers)}
    problems += [f"there is nothing for {path}" for path in sorted(wanted) if _added(path, "a") not in found]
    if problems or not found:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit the backbone {backbone.spec}: " + ("; ".join(problems) or "it is empty")
        )
    method = MethodConfig(
        kind="lora",
        targets=tuple(targets),
        rank=rank,
        alpha=float(alpha),
        dropout=float(config.get("lora_dropout") or 0.0),
        layers=() if len(layers) == backbone.sizes.depth else tuple(layers),
    )
    return method, traverse_util.unflatten_dict(found, sep="/")


def _product(targets: list[str], layers: list[int]) -> set[tuple[str, int]]:
    return {(target, layer) for target in targets for layer in layers}


def _projections(backbone: Backbone) -> dict[str, _Projection]:
    """By the paths of their kernels, the projections that are modules of their own in transformers."""
    assert backbone.weight_map is not None
    # The parameters at hand may lack those that are trained.
    made = jax.eval_shape(backbone.model.init, jax.random.key(0), backbone.example)["params"]
    shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(made, sep="/").items()}
    found = {}
    for weight in backbone.weight_map.weights:
        if not PLACE.fullmatch(weight.target):
            continue
        in_file = len(weight.sources) == 1 and weight.convert is transpose
        names = (weight.module, weight.sources[0].removesuffix(".weight") if in_file else "")
        if any(names):
            found[weight.target] = _Projection(tuple(name for name in names if name), shapes[weight.target])
    return found


def _checked(
    added: Params, projections: dict[str, _Projection], method: MethodConfig, spec: str
) -> dict[str, np.ndarray]:
    """The matrices by their paths, which are LoRA's of this rank in the projections."""
    flat = traverse_util.flatten_dict(added, sep="/")
    problems = []
    for path, leaf in sorted(flat.items()):
        kernel, matrix, shape = _kernel_of(path), path[-1], np.shape(leaf)
        if kernel not in projections or path not in [_added(kernel, matrix) for matrix in MATRICES]:
            problems.append(f"{path} {list(shape)} is no matrix of LoRA in a projection of the backbone")
        elif shape != (expected := projections[kernel].shapes(method.rank)[matrix]):
            problems.append(f"{path} {list(shape)} should be {list(expected)} at rank={method.rank}")
    if problems := problems or _halves(flat):
        raise ConfigError(
            f"{spec}: {'; '.join(problems)}: give the method and what it trained in this backbone, "
            'params["embedded"][modality].'
        )
    if not flat:
        raise ConfigError(f'{spec}: there is no LoRA to write: give what was trained, params["embedded"][modality].')
    return flat


def _halves(found: Collection[str]) -> list[str]:
    """What to say of matrices without their others."""
    other = {"a": "b", "b": "a"}
    halves = [path for path in found if path[:-1] + other[path[-1]] not in found]
    return [f"the other matrix of {path[:-2]} is missing" for path in halves]


def _prefix(backbone: Backbone) -> str:
    assert backbone.weight_map is not None
    return backbone.weight_map.prefix


def _kernel_of(path: str) -> str:
    """The kernel beside which a matrix was added."""
    return f"{path.rsplit('/', 2)[0]}/dense/kernel"


def _added(kernel: str, matrix: str) -> str:
    module = kernel.removesuffix("/dense/kernel")
    return f"{module}/added_{module.rsplit('/', 1)[1]}/{matrix}"


def _place(kernel: str) -> tuple[str, int]:
    found = PLACE.fullmatch(kernel)
    assert found is not None
    assert found["place"] in PROJECTIONS
    return found["place"], int(found["layer"])


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}): name a folder that peft wrote.") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ConfigError(f"{path}: only peft_type 'LORA' is read.")
    refused = [f"{key}={config[key]!r}" for key in REFUSED if config.get(key)]
    if config.get("bias", "none") != "none":
        refused.append(f"bias={config['bias']!r}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(REFUSED_STARTS):
        refused.append(f"init_lora_weights={start!r}")
    if refused:
        raise ConfigError(f"{path}: {', '.join(refused)} makes another computation than plain LoRA, which is not read.")
    return config


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a sound safetensors file ({error}).") from error
