"""Groups of parameters that a config names, held against the parameters that it will have."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from mmrec_jax import experiment
from mmrec_jax.config import RunConfig
from mmrec_jax.errors import ConfigError
from mmrec_jax.systems.registry import SYSTEMS
from mmrec_jax.types import Params

Groups = tuple[tuple[str, float], ...]
_WIDTH = 768


def check_groups(config: RunConfig) -> None:
    """Finds patterns of `training.groups` that will fit no parameter, or share one, from the config alone: shapes are
    traced, nothing is loaded, and no device is used.

    Left to the training are patterns that may be about what is not known here: parameters inside live backbones,
    layers where the config names none, and systems of other packages.

    Raises:
        ConfigError: as `training.optimizers.parameter_groups`.
    """
    groups = tuple((pattern, rate) for pattern, rate in config.training.groups if re.match(_known(config), pattern))
    if not groups or config.model.system not in SYSTEMS:
        return
    from mmrec_jax.training.optimizers import parameter_groups

    found: list[list[str]] = []
    for params in _possible(config):
        try:
            parameter_groups(params, groups)
        except ConfigError as error:
            found.append(str(error).splitlines())
        else:
            return
    # What depends on the widths of the backbones, which are not known either, is a mistake where it always is one.
    if always := [line for line in (found or [[]])[0] if all(line in lines for lines in found)]:
        raise ConfigError("\n".join(always))


def groups_of_some(config: RunConfig, groups: Groups, whole: RunConfig | None, left_out: Collection[str]) -> Groups:
    """Groups for a config with some of the modalities of another: without patterns that fit only what the others bring.

    Patterns that fit neither stay, and are the mistakes that they are. Where the parameters are not known, a pattern is
    left out that names a modality which is not there, and none that is.

    Args:
        config: with some of the modalities, and no groups.
        groups: of the other.
        whole: with all modalities; None where they cannot be together.
        left_out: modalities that the config lacks.
    """
    own, every = _paths(config), _paths(whole) if whole else []
    known = _known(whole) if whole and every else "(?!)"

    def stays(pattern: str) -> bool:
        if _fits(pattern, own):
            return True
        if _fits(pattern, every) or re.match(known, pattern):
            return not _fits(pattern, every)
        return _names_one(pattern, config.modalities) or not _names_one(pattern, left_out)

    return tuple((pattern, rate) for pattern, rate in groups if stays(pattern))


def _paths(config: RunConfig) -> list[str]:
    """Paths of parameters, as far as they are known; of those inside a live backbone, their beginning."""
    from mmrec_jax.training.trees import named_leaves

    found = {f"embedded/{name}/": None for name, method in config.methods.items() if method.kind != "frozen"}
    if config.model.system in SYSTEMS:
        for params in _possible(config):
            found |= dict.fromkeys(named_leaves(params))
    return list(found)


def _fits(pattern: str, paths: Collection[str]) -> bool:
    """Whether a pattern matches the beginning of a path; one that is no regular expression is found elsewhere."""
    try:
        return any(re.match(pattern, path) for path in paths)
    except re.error:
        return False


def _names_one(pattern: str, names: Collection[str]) -> bool:
    """Whether one of some names is among the words of a pattern."""
    return any(re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", pattern) for name in names)


def _known(config: RunConfig) -> str:
    """Expression that patterns begin with whose parameters are known."""
    if any(not part.layers for part in config.modalities.values()):
        return "(users|scale)/"
    trained = any(method.kind != "frozen" for method in config.methods.values())
    return "(items|users|scale)/" if trained else ""


def _possible(config: RunConfig) -> Iterator[Params]:
    """Shapes of the parameters with backbones of equal widths, and with each one wider or narrower than the others."""
    import jax
    import jax.numpy as jnp

    from mmrec_jax.store.table import StateTable
    from mmrec_jax.training.items import SequentialFrozen

    def shape(*sizes: int, dtype: Any = jnp.float32) -> Any:  # in the place of an array
        return jax.ShapeDtypeStruct(sizes, dtype)

    # What is known is as with cached states and on any device.
    plain = replace(config, methods={}, training=replace(config.training, groups=(), compute_dtype="float32"))
    for step in (0, 1, -1):
        widths = {name: _WIDTH + 64 * step * number for number, name in enumerate(config.modalities)}
        values = {
            name: (shape(2, widths[name]),) * len(part.layers or "00") for name, part in config.modalities.items()
        }
        table = StateTable(values, {}, dict.fromkeys(values, shape(2, dtype=jnp.bool_)))
        try:
            task = experiment.build_task(plain, table if values else None, 2)
        except ConfigError:  # a system that wants equal widths
            continue
        frozen = SequentialFrozen(table if values else None, shape(2))
        yield jax.eval_shape(lambda frozen, task=task: task.init(jax.random.key(0), frozen), frozen)
