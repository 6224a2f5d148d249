"""The systems by name: `model.system` names a page of this folder, or any other module, that holds a `SYSTEM`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmrec_jax.errors import ConfigError

if TYPE_CHECKING:
    import flax.linen as nn

    from mmrec_jax.config import RunConfig

SYSTEMS = ("crossan", "gru4rec", "iisan", "iisan_versa", "linear", "sasrec", "xsmoe")
"""Pages of this folder. A system of one's own is named by its module: `model.system="my_shop.towers"`."""
STATES, IDS = "states", "ids"


@dataclass(frozen=True)
class StateShape:
    """Of one modality's hidden states: their width, and how many layers were selected."""

    width: int
    layers: int


@dataclass(frozen=True)
class CatalogueShape:
    """What a model's sizes depend on.

    Attributes:
        rows: of the catalogue, padding included.
        states: modality -> shape of its hidden states, in the config's order; whether they lie in a table or are
            computed as they are needed makes no difference.
    """

    rows: int
    states: Mapping[str, StateShape]

    @classmethod
    def of_layers(cls, config: RunConfig) -> CatalogueShape:
        """The shape as far as a config tells it, for checks: all widths are 1, and an open list of layers has 2."""
        return cls(1, {name: StateShape(1, len(part.layers) or 2) for name, part in config.modalities.items()})


def _modalities(config: RunConfig) -> tuple[str, ...]:
    return tuple(config.modalities)


def _possible(config: RunConfig) -> None:
    """No combination of this system is impossible."""


@dataclass(frozen=True)
class System:
    """A paper's item encoder.

    Attributes:
        build: the Flax module, for a config and the catalogue's shape. It is called with what it reads, in that order,
            and returns `ItemVectors`.
        reads: of each item, its hidden `states` (`types.HiddenStates`, from a table or from a live backbone), its
            catalogue row (`ids`), or both.
        switches: keys of `model` that it reads, beside those that all systems do; other values than the default of
            any other key are an error.
        parts: names of the columns of `ItemVectors.weights`.
        check: raises a `ConfigError` for combinations that cannot be.
        fusion: the paper's `fusion.kind`; "" where it has none of its own.
    """

    build: Callable[[RunConfig, CatalogueShape], nn.Module]
    reads: tuple[str, ...] = (STATES,)
    switches: tuple[str, ...] = ()
    parts: Callable[[RunConfig], tuple[str, ...]] = _modalities
    check: Callable[[RunConfig], None] = _possible
    fusion: str = ""


def known(name: str) -> bool:
    """Whether a name is that of a page here, or of some module elsewhere."""
    return name in SYSTEMS or "." in name


def system(name: str) -> System:
    """The system of a name.

    Raises:
        ConfigError: there is no such module, or it holds no `SYSTEM`.
    """
    module = name if "." in name else f"{__package__}.{name}"
    try:
        found = getattr(importlib.import_module(module), "SYSTEM", None)
    except ModuleNotFoundError as error:
        raise ConfigError(f"model.system={name!r}: {error}. Name one of {', '.join(SYSTEMS)}, or a module.") from error
    if not isinstance(found, System):
        raise ConfigError(f"model.system={name!r}: the module holds no SYSTEM, a `mmrec_jax.systems.System`.")
    return found


def reads(config: RunConfig) -> tuple[str, ...]:
    """What a config's item encoder reads of each item."""
    own = system(config.model.system).reads
    return (*own, IDS) if config.model.add_ids else own


def build(config: RunConfig, catalogue: CatalogueShape) -> nn.Module:
    """The item encoder of a config, called with what `reads` says."""
    module = system(config.model.system).build(config, catalogue)
    if not config.model.add_ids:
        return module
    from mmrec_jax.systems.id_table import IdsAndContent, IdTable

    return IdsAndContent(module, IdTable(catalogue.rows, config.model.width))


def hint(config: RunConfig) -> str:
    """What a person who has not chosen a fusion should know of the paper's; "" for nothing."""
    chosen = system(config.model.system)
    default = type(config.fusion)()
    if chosen.fusion in ("", default.kind) or config.fusion != default or len(chosen.parts(config)) == 1:
        return ""
    return (
        f"model.system={config.model.system!r} has fusion.kind={chosen.fusion!r} in its paper, and here the default, "
        f"{default.kind!r}."
    )


def check(config: RunConfig) -> None:
    """Finds combinations that cannot be.

    Raises:
        ConfigError: modalities that are missing or not read, a switch that the system does not read, or what the
            system itself refuses.
    """
    name, chosen = config.model.system, system(config.model.system)
    if STATES in chosen.reads and not config.modalities:
        raise ConfigError(f"model.system={name!r} reads hidden states: name at least one modality.")
    if STATES not in chosen.reads and config.modalities:
        raise ConfigError(f"model.system={name!r} knows items by id only: it takes no modalities.")
    if config.model.add_ids and IDS in chosen.reads:
        raise ConfigError(f"model.add_ids: model.system={name!r} reads ids already.")
    if config.model.standardise and config.methods:
        raise ConfigError(
            f"model.standardise measures hidden states once, before training, and those of {', '.join(config.methods)} "
            "are computed in the step: switch one of the two off."
        )
    for key, value in config.model.switched().items():
        if key not in chosen.switches:
            readers = [other for other in SYSTEMS if key in system(other).switches]
            raise ConfigError(
                f"model.{key}={value!r} means nothing to model.system={name!r}; it is read by {', '.join(readers)}."
            )
    chosen.check(config)
