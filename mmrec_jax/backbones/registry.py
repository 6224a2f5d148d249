"""Families of encoders by the `model_type` of config.json."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from mmrec_jax.backbones import families
from mmrec_jax.backbones.family import Family
from mmrec_jax.errors import BackboneError


@cache
def known_families() -> dict[str, Family]:
    """Every family that a file in `backbones/families/` lists in its `FAMILIES`."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(families.__path__):
        for family in importlib.import_module(f"{families.__name__}.{module.name}").FAMILIES:
            found[family.model_type] = family
    return found


def find_family(model_type: object, where: str) -> Family:
    """The family of a `model_type`.

    Raises:
        BackboneError: no family has that name; the known ones are listed.
    """
    found = known_families()
    if model_type not in found:
        raise BackboneError(f"{where}: model_type {model_type!r} is unknown; known are {', '.join(sorted(found))}")
    return found[str(model_type)]
