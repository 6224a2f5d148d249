"""Methods inside a backbone: which modules are added at which places, and which of its own weights are trained."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from mmrec_jax.adapters.bottleneck import Bottleneck
from mmrec_jax.adapters.config import ADDING, MethodConfig
from mmrec_jax.adapters.lora import LowRank
from mmrec_jax.adapters.prefix import Prefix, Prompt
from mmrec_jax.errors import ConfigError
from mmrec_jax.types import Params

BLOCK = re.compile(r"(?:^|/)block_(\d+)/")
NORMS = re.compile(r"(?:^|/)(?:\w+_)?norms?(?:_\w+)?/(?:scale|bias)$")
_BOTTLENECKS = {"houlsby": ("attention", "feed_forward"), "pfeiffer": ("feed_forward",), "parallel": ("feed_forward",)}


@dataclass(frozen=True)
class EmbeddedMethod:
    """The `BlockMethod` of a config; methods that only select weights put nothing anywhere."""

    config: MethodConfig

    def __call__(self, place: str, layer: int, name: str, *, branch: str = "") -> nn.Module | None:
        c = self.config
        if place == "tokens":
            return Prompt(c.tokens, name=name) if c.kind == "prompt" else None
        if c.layers and layer not in c.layers:
            return None
        if c.kind == "lora" and place in c.targets:
            return LowRank(c.rank, c.alpha, c.dropout, name=name)
        if place in _BOTTLENECKS.get(c.kind, ()):
            return Bottleneck(c.bottleneck, c.activation, c.kind == "parallel", c.scale, c.dropout, name=name)
        return Prefix(c.tokens, name=name) if c.kind == "prefix" and place == "attend" else None


def trained_names(config: MethodConfig, depth: int, own: Collection[str], every: Collection[str], where: str) -> set:
    """Names of the parameters that a method trains.

    Args:
        config: the method.
        depth: blocks of the backbone.
        own: '/'-joined names of the backbone's own parameters that its hidden states depend on.
        every: names of all parameters, those of added modules among them.
        where: what to call the backbone in a message.

    Raises:
        ConfigError: a block that the backbone lacks or no hidden state depends on, or a target or weights that it does
            not have.
    """
    beyond = [layer for layer in config.layers if layer >= depth]
    if beyond or (config.kind == "top" and config.top > depth):
        asked = f"layers {beyond}" if beyond else f"top={config.top}"
        raise ConfigError(f"{where}: {asked}: the backbone has {depth} blocks, counted from 0.")
    _check_used(config, depth, own, where)
    if config.kind in ADDING:
        names = {name for name in every if "/added_" in f"/{name}"}
        lacking = [t for t in config.targets if config.kind == "lora" and not any(f"/added_{t}/" in n for n in names)]
        if lacking or not names:
            what = f"no projection {', '.join(lacking)}" if lacking else "no place for it"
            raise ConfigError(f"{where}: kind={config.kind!r}: the backbone has {what}.")
        return names
    names = {name for name in own if _selects(config, depth, name)}
    if not names and config.kind != "frozen":
        raise ConfigError(f"{where}: kind={config.kind!r} finds nothing to train in the backbone: choose another kind.")
    return names


def _check_used(config: MethodConfig, depth: int, own: Collection[str], where: str) -> None:
    """Refuses blocks above the last state that is read, where a method names them or has no others."""
    used = {int(found[1]) for name in own if (found := BLOCK.search(name))}
    asked = config.layers or tuple(range(depth if config.kind in ADDING else 0))
    if config.kind == "top":
        asked = tuple(range(depth - config.top, depth))
    idle = sorted(set(asked) - used)
    if idle and (config.layers or len(idle) == len(asked)):
        named = f"block {idle[0]}" if len(idle) == 1 else f"blocks {', '.join(map(str, idle))}"
        raise ConfigError(
            f"{where}: no state that is read depends on {named}: name other blocks, or a higher state in the "
            "modality's `layers`."
        )


def _selects(config: MethodConfig, depth: int, name: str) -> bool:
    """Whether a method trains a weight of the backbone."""
    found = BLOCK.search(name)
    layer = int(found[1]) if found else None
    if config.layers and layer not in config.layers:
        return False
    if config.kind == "bitfit":
        return name.split("/")[-1] == "bias"
    if config.kind == "layer_norm":
        return NORMS.search(name) is not None
    return config.kind == "full" or (config.kind == "top" and layer is not None and layer >= depth - config.top)


def split(params: Params, names: Collection[str]) -> tuple[Params, Params]:
    """The parameters of these '/'-joined names, and the rest: two trees without a leaf in common."""
    flat = traverse_util.flatten_dict(params, sep="/")
    chosen = {name: leaf for name, leaf in flat.items() if name in names}
    rest = {name: leaf for name, leaf in flat.items() if name not in names}
    return traverse_util.unflatten_dict(chosen, sep="/"), traverse_util.unflatten_dict(rest, sep="/")


def join(trained: Params, frozen: Params) -> Params:
    """One tree out of two that have no leaf in common."""
    return traverse_util.unflatten_dict({**traverse_util.flatten_dict(frozen), **traverse_util.flatten_dict(trained)})


def used_names(model: nn.Module, params: Params, inputs: object, states: Iterable[int]) -> set[str]:
    """Names of the parameters that hidden states depend on; shapes are enough of everything.

    Weights above the last state that is read, and norms after it, would be trained without a gradient.
    """

    def outputs(leaves, x):
        made = model.apply({"params": jax.tree.unflatten(structure, leaves)}, x)
        return [made[state] for state in states]

    named, structure = jax.tree_util.tree_flatten_with_path(params)
    jaxpr = jax.make_jaxpr(outputs)([leaf for _, leaf in named], inputs).jaxpr
    needed = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named]
    return {name for name, variable in zip(names, jaxpr.invars, strict=False) if id(variable) in needed}


def start_of(values: Params, names: Collection[str]) -> Params:
    """Float32 copies, on the host, of the parameters of these names: what training begins with."""
    return jax.tree.map(lambda leaf: np.array(leaf, np.float32), jax.device_get(split(values, names)[0]))
