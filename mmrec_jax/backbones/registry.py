"""Families of encoders by the `model_type` of config.json."""

from __future__ import annotations

import copy
import importlib
import pkgutil
from functools import cache

from mmrec_jax.backbones import families
from mmrec_jax.backbones.family import Family
from mmrec_jax.errors import BackboneError


@cache
def known_families() -> dict[tuple[str, str], Family]:
    """By model_type and kind, every family that a file in `backbones/families/` lists in its `FAMILIES`."""
    found: dict[tuple[str, str], Family] = {}
    for module in pkgutil.iter_modules(families.__path__):
        for family in importlib.import_module(f"{families.__name__}.{module.name}").FAMILIES:
            found[family.model_type, family.kind] = family
    return found


def find_family(model_type: object, where: str, kind: str = "") -> Family:
    """The family of a `model_type`.

    Args:
        model_type: as in config.json.
        where: the file, for the error.
        kind: what is to be encoded; "" is whatever the model encodes. A video may be encoded by a family of images,
            frame by frame.

    Raises:
        BackboneError: no family has that name, or it encodes another kind, or several and none was named.
    """
    kinds = {known[1]: family for known, family in known_families().items() if known[0] == model_type}
    if not kinds:
        names = sorted({known[0] for known in known_families()})
        raise BackboneError(f"{where}: model_type {model_type!r} is unknown; known are {', '.join(names)}")
    if kind == "video" and kind not in kinds and "image" in kinds:
        kind = "image"
    if kind and kind not in kinds:
        raise BackboneError(f"{where}: model_type {model_type!r} encodes {' and '.join(sorted(kinds))}, not {kind}")
    if not kind and len(kinds) > 1:
        raise BackboneError(f"{where}: model_type {model_type!r} encodes {' and '.join(sorted(kinds))}: say which kind")
    return kinds[kind or next(iter(kinds))]


def preset(name: str) -> dict:
    """The config.json of a published size, for planning without its files.

    Raises:
        BackboneError: no family lists that name; the known ones are listed.
    """
    known = {name: config for family in known_families().values() for name, config in family.presets.items()}
    if name not in known:
        raise BackboneError(f"no preset is named {name!r}; known are {', '.join(sorted(known))}")
    return copy.deepcopy(dict(known[name]))
