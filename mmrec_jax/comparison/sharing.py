"""What the runs of a comparison share: prepared data, the held-out users that they are paired by, hidden states."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mmrec_jax import experiment
from mmrec_jax.backbones.config import ModalityConfig
from mmrec_jax.backbones.source import check_here
from mmrec_jax.backbones.text import fill_template
from mmrec_jax.comparison.plan import Variant
from mmrec_jax.config import SECTIONS, RunConfig
from mmrec_jax.data.config import DataConfig
from mmrec_jax.errors import BackboneError, ConfigError, EvaluationError, StoreMismatchError, UserError
from mmrec_jax.evaluation.pairing import HeldOut, held_out, unpaired
from mmrec_jax.modes.run import Run
from mmrec_jax.modes.workdir import is_trained
from mmrec_jax.store.extract import encoded_together

_PROTOCOL = {
    "data": tuple(field.name for field in fields(DataConfig)),
    "evaluation": ("mask_history", "repeats_are_misses"),
}


@dataclass(frozen=True)
class SharedData:
    """What all runs are evaluated on.

    Attributes:
        held_out: users and their held-out items of the test split.
        fingerprints: of each variant's prepared data, by the variant's name.
    """

    held_out: HeldOut
    fingerprints: dict[str, str]


def share_places(variants: Sequence[Variant], workdir: Path) -> list[Variant]:
    """The variants with prepared data and hidden states in the comparison's workdir, where a config names no place.

    Runs whose modalities are made alike share a store, whatever layers each of them reads; a sample's own store is
    used as it is.
    """
    placed = [
        variant if variant.config.prepared else _with(variant, prepared=str(workdir / "data")) for variant in variants
    ]
    groups: list[tuple[dict[str, Any], list[int]]] = []
    for number, config in enumerate(variant.config for variant in placed):
        if config.store or not config.cached or experiment.store_location(config, workdir) != str(workdir / "store"):
            continue
        wanted = {"": _source(config)} | {name: _making(part) for name, part in config.cached.items()}
        held, members = next((group for group in groups if _agree(group[0], wanted)), ({}, []))
        if not members:
            groups.append((held, members))
        held |= wanted
        members.append(number)
    taken: set[str] = set()
    for _, members in groups:
        location = _location([placed[number].config for number in members], workdir, taken)
        taken.add(location)
        for number in members:
            placed[number] = _with(placed[number], store=location)
    return placed


def check_data(variants: Sequence[Variant], console: Console) -> SharedData:
    """Prepares the data of all variants, and makes sure that they can be compared user by user.

    Nothing here uses an accelerator, which the runs need for themselves.

    Raises:
        EvaluationError: users, held-out items, candidates or what is left out of the ranking differ: says how, of all
            variants.
        UserError: data or stores that cannot be used, as the variants' own runs would find; all of them are named.
    """
    opened: dict[Any, Run] = {}
    runs: dict[str, Run] = {}
    problems: dict[tuple[type[UserError], str], list[str]] = {}
    for variant in variants:
        config, key = variant.config, (variant.config.data, variant.config.prepared)
        run = Run(config, Path(config.prepared).parent, console, baseline_of=opened.get(key))
        try:
            run.check()
            _check_states(run)
        except UserError as error:
            problems.setdefault((type(error), str(error)), []).append(variant.name)
        else:
            opened.setdefault(key, run)
            runs[variant.name] = run
    if problems:
        kinds = {kind for kind, _ in problems}
        kind = kinds.pop() if len(kinds) == 1 else UserError
        raise kind("\n".join(f"{', '.join(names)}: {text}" for (_, text), names in problems.items()))
    return SharedData(_examples(runs), {name: run.data.fingerprint for name, run in runs.items()})


def _examples(runs: Mapping[str, Run]) -> HeldOut:
    """The examples that all runs are evaluated on.

    Raises:
        EvaluationError: they differ.
    """
    (first, run), *others = runs.items()
    expected, problems = held_out(run.data, run.config.evaluation), []
    for name, other in others:
        apart = settings_apart(run.config, other.config)
        if other.data is run.data and not apart:
            continue
        if found := unpaired(expected, held_out(other.data, other.config.evaluation)):
            found += apart
            problems.append(f"{first} and {name} are evaluated on other examples:\n  " + "\n  ".join(found))
    if problems:
        problems.append(
            "Methods are compared user by user: give them the same data, candidates and protocol, as `settings` of the "
            "comparison do."
        )
        raise EvaluationError("\n".join(problems))
    return expected


def settings_apart(first: RunConfig, second: RunConfig) -> list[str]:
    """What two runs set differently of all that decides on their examples, in one text; none where they agree."""
    found = []
    for section, names in _PROTOCOL.items():
        for name in names:
            one, other = (getattr(getattr(config, section), name) for config in (first, second))
            if one != other:
                found.append(f"{section}.{name}={one!r} and {other!r}")
    shorter = first.data.max_length != second.data.max_length
    hint = " (how much of a history a model reads is model.length)" if shorter else ""
    return [f"settings: {', '.join(found)}{hint}"] if found else []


def extractions(variants: Sequence[Variant], shared: SharedData) -> list[RunConfig]:
    """Configs for `--mode=extract` of what is missing in stores that the runs will read: for each store, one for the
    modalities that are read and encoded together, so that what is wrong with others does not concern them.

    Raises:
        ConfigError: two methods name one store and want a modality made in different ways.
    """
    wanted: dict[str, RunConfig] = {}
    for config in (variant.config for variant in variants if variant.config.store and variant.config.cached):
        before = wanted.get(config.store)
        modalities = {**(before.modalities if before else {})}
        for name, part in config.cached.items():
            if name in modalities and _making(modalities[name]) != _making(part):
                raise ConfigError(
                    f"store={config.store}: two methods want modality {name} made in different ways. Leave `store` "
                    "empty, and each gets a store of its own, or give the modality another name."
                )
            layers = {*part.layers, *(modalities[name].layers if name in modalities else ())} if part.layers else ()
            modalities[name] = replace(part, layers=tuple(sorted(layers)))
        wanted[config.store] = _extraction(before or config, modalities)
    items = [str(item) for item in shared.held_out.candidates]
    apart = [_extraction(config, group) for config in wanted.values() for group in encoded_together(config.modalities)]
    return [config for config in apart if _lacks(config, config.store, items)]


def check_backbones(configs: Mapping[str, RunConfig], missing: Sequence[RunConfig]) -> None:
    """Makes sure that backbones that will be loaded are there, as far as that can be told without the hub.

    Args:
        configs: title -> config of each run that is to be trained.
        missing: what is to be extracted before.

    Raises:
        BackboneError: directories or packages that are not there; all of them are named.
    """
    extracted = {(config.store, name) for config in missing for name in config.modalities}
    problems: dict[str, list[str]] = {}
    for title, config in configs.items():
        for name, part in config.modalities.items():
            if name in config.methods or (config.store, name) in extracted:
                try:
                    check_here(part.backbone)
                except BackboneError as error:
                    problems.setdefault(f"modalities.{name}: {error}", []).append(title)
    if problems:
        raise BackboneError("\n".join(f"{', '.join(titles)}: {text}" for text, titles in problems.items()))


def _with(variant: Variant, **places: str) -> Variant:
    return replace(variant, config=replace(variant.config, **places))  # type: ignore[arg-type]  # all of them are texts


def _location(configs: Sequence[RunConfig], workdir: Path, taken: set[str]) -> str:
    """The first place for a store that no others have, and where none lies that is of another making."""
    places = (str(workdir / ("store" if number == 1 else f"store_{number}")) for number in itertools.count(1))
    return next(place for place in places if place not in taken and all(_fits(config, place) for config in configs))


def _fits(config: RunConfig, place: str) -> bool:
    try:
        _check_store(config, place)
    except StoreMismatchError:
        return False
    return True


def _check_store(config: RunConfig, place: str, trained: bool = False) -> None:
    """Raises StoreMismatchError where a store holds a modality of the config's that is made in another way."""
    store = experiment.open_store(place)
    if store is not None:
        experiment.check_store(config, store, trained)


def _source(config: RunConfig) -> tuple:
    """What names the items and their media."""
    data = config.data
    return data.source, data.layout, data.items_file, data.catalogue_item_column, config.extraction.dtype


def _making(part: ModalityConfig) -> tuple[ModalityConfig, bool]:
    """How states are made, whatever layers are kept; whether the layers are named is a difference, since the depth of
    a backbone is not known here."""
    return replace(part, layers=()), bool(part.layers)


def _agree(held: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(held.get(name, value) == value for name, value in wanted.items())


def _check_states(run: Run) -> None:
    """Finds out whether the catalogue has what modalities are made of, and whether a store that is there fits them."""
    config = run.config
    if not config.cached:
        return
    place = experiment.store_location(config, run.workdir)
    _check_store(config, place, is_trained(run.workdir))
    if _lacks(config, place, [str(item) for item in run.data.item_ids[1:]]):
        for part in config.cached.values():
            fill_template(part.source, run.data.catalogue.head(0))


def _extraction(config: RunConfig, modalities: dict[str, ModalityConfig]) -> RunConfig:
    """The config that fills a store: a run's, with nothing that only its model needs."""
    defaults = {name: section() for name, section in SECTIONS.items()}
    kept = {"data": config.data, "extraction": config.extraction, "store": config.store, "prepared": config.prepared}
    return RunConfig(**{"name": "hidden_states", **defaults, **kept, "modalities": modalities})


def _lacks(config: RunConfig, place: str, items: list[str]) -> bool:
    """Whether a store has not been through all items with all modalities."""
    store = experiment.open_store(place)
    return store is None or any(store.missing(config.cached, items).values())
