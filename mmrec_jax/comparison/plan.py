"""From a comparison to its runs: every config is parsed, and told what it shares, before anything runs."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmrec_jax.comparison.config import Comparison, Entry, is_comparison
from mmrec_jax.config import RunConfig, build, resolve, to_json
from mmrec_jax.config_files import load_config
from mmrec_jax.errors import ConfigError
from mmrec_jax.modes.groups import Groups, groups_of_some
from mmrec_jax.modes.workdir import changes, is_trained
from mmrec_jax.training.config import TrainingConfig

# Keys that a finished run may change, but not one that is compared: it would have been trained in two ways.
_FIXED = ("training.epochs", "training.patience")


@dataclass(frozen=True)
class Variant:
    """A row of the table: a method, or one stage of it.

    Attributes:
        name: of the row.
        method: of the comparison.
        stage: number of the stage, from 1; 0 in a plan without stages.
        config: of its runs, but for the seed.
        reference: name of the row that it is compared with; "" for none.
        warm: whether its runs begin with the parameters of the stage before.
    """

    name: str
    method: str
    stage: int
    config: RunConfig
    reference: str = ""
    warm: bool = False


@dataclass(frozen=True)
class Trial:
    """One training: a variant with a seed, in a workdir of its own.

    Attributes:
        variant: what is trained.
        seed: of the training.
        config: of the run.
        workdir: of the run; the same for trials that are the same training.
        after: the trial that must be finished before, whose parameters this one begins with.
        like: workdir of the first trial that is the same training, which may have been done there as well.
    """

    variant: Variant
    seed: int
    config: RunConfig
    workdir: Path
    after: Trial | None = None
    like: Path | None = None

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.variant.name}, seed {self.seed}"


def variants(comparison: Comparison, folder: Path) -> list[Variant]:
    """Every row of the table, with its resolved config; those of a method follow each other.

    Args:
        comparison: what to compare.
        folder: that config files are relative to.

    Raises:
        ConfigError: configs that cannot be used; all of them are named.
    """
    found, problems = [], []
    for name, entry in comparison.runs.items():
        try:
            path = str(folder / entry.config)
            if is_comparison(load_config(path)):  # before settings that it would not know
                raise ConfigError("its config is a comparison, and not that of a run.")
            config = load_config(path, (*comparison.settings, *entry.settings))
            found += _staged(comparison, name, entry, config) if comparison.plan == "staged" else []
            found += _plain(comparison, name, entry, config) if comparison.plan == "plain" else []
        except ConfigError as error:
            problems.append(f"runs.{name}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))
    return _compared_with(comparison.baseline, found) if comparison.plan == "staged" and comparison.baseline else found


def trials(rows: Sequence[Variant], seeds: Sequence[int], workdir: Path) -> list[Trial]:
    """Every run, in the order to go through: seed by seed, so that a stopped comparison has some of everything.

    A run that another row has as well, with the same parameters to begin with, is trained once: both have its workdir.

    Raises:
        ConfigError: a run's folder holds one that was trained with another config, or that began with the parameters
            of a run that is not there any more.
    """
    made: list[Trial] = []
    of_content: dict[str, Trial] = {}
    before: Trial | None = None
    for seed in seeds:
        for variant in rows:
            folder = workdir / "runs" / variant.method / (f"stage_{variant.stage}" if variant.stage else "")
            place = folder / f"seed_{seed}"
            before = before if variant.warm else None
            config = replace(
                variant.config,
                training=replace(variant.config.training, seed=seed),
                warm_start=_beside(before.workdir, place) if before else variant.config.warm_start,
            )
            trial = Trial(variant, seed, config, place, before)
            first = of_content.setdefault(_content(trial), trial)
            before = replace(trial if is_trained(place) else first, variant=variant, like=first.workdir)
            made.append(before)
    for trial in made:
        if trial.after and is_trained(trial.workdir) and not is_trained(trial.after.workdir):
            raise ConfigError(
                f"{trial.workdir} began with the parameters of {trial.after.workdir}, which holds no checkpoint any "
                f"more: remove {trial.workdir} as well, and both are trained anew."
            )
    changed = {trial.workdir: changes(trial.config, trial.workdir, _FIXED)[1] for trial in made}
    if texts := [f"{place}: {'; '.join(refused)}" for place, refused in changed.items() if refused]:
        raise ConfigError(
            "These runs were trained with another config:\n  "
            + "\n  ".join(texts)
            + "\nMethods that are compared are trained in one go: change the settings back, choose another --workdir, "
            "or remove these folders, and their runs are trained anew."
        )
    return made


def _content(trial: Trial) -> str:
    """What decides how a run ends, in one text."""
    begins_with = trial.after.workdir.as_posix() if trial.after else trial.config.warm_start
    return json.dumps(to_json(trial.config) | {"name": "", "warm_start": begins_with}, sort_keys=True)


def _beside(workdir: Path, other: Path) -> str:
    """A run's workdir as seen from another's, so that the folder of both can be moved."""
    return f"{{workdir}}/{Path(os.path.relpath(workdir, other)).as_posix()}"


def _plain(comparison: Comparison, name: str, entry: Entry, config: ConfigDict) -> list[Variant]:
    baseline = comparison.baseline or next(iter(comparison.runs))
    settings = _compared(config, name, entry.modalities)
    return [Variant(name, name, 0, settings, "" if name == baseline else baseline)]


def _staged(comparison: Comparison, name: str, entry: Entry, config: ConfigDict) -> list[Variant]:
    found: list[Variant] = []
    before: tuple[str, ...] = ()
    for number, stage in enumerate(entry.stages or comparison.stages, 1):
        settings = _compared(config, f"{name}_stage_{number}", stage)
        if settings.warm_start:
            raise ConfigError("warm_start is what the stages of a plan set: leave it empty.")
        warm = entry.warm_start and bool(found)
        if warm and not set(before) <= set(stage):
            raise ConfigError(
                f"stage {number} has {'+'.join(stage)} after {'+'.join(before)}: a stage that begins with the "
                "parameters of the one before may only add modalities. Name those as well, or set warm_start=False."
            )
        reference = found[-1].name if found else ""
        title = f"{name} {number}: {_added(before, stage)}"
        found.append(Variant(title, name, number, settings, reference, warm))
        before = stage
    return found


def _compared_with(baseline: str, rows: Sequence[Variant]) -> list[Variant]:
    """Stages compared with those of a method that have the same number, where it has as many."""
    names = {row.stage: row.name for row in rows if row.method == baseline}
    return [replace(row, reference="" if row.method == baseline else names.get(row.stage, "")) for row in rows]


def _added(before: Sequence[str], now: Sequence[str]) -> str:
    """A stage in words: what it adds to the one before, or all that it has."""
    if not before or not set(before) <= set(now):
        return "+".join(now)
    return " ".join(f"+{name}" for name in now if name not in before) or "the same again"


def _compared(config: ConfigDict, name: str, modalities: Sequence[str]) -> RunConfig:
    """The config of a run that is compared: of these modalities, without what only one run on its own has."""
    values: dict[str, Any] = config.to_dict()
    if (mode := values.get("mode", "train")) != "train":
        raise ConfigError(
            f"its config has mode={mode!r}, and runs that are compared are trained on all events at once, without "
            "windows and growth: run it on its own with --mode=stream (bench/streaming.py does that for several), or "
            "add the setting 'mode=train' where that is what you want."
        )
    values |= {"name": name, "baselines": (), "show_users": 0}
    if modalities:
        named = values.get("modalities", {})
        if unknown := [modality for modality in modalities if modality not in named]:
            raise ConfigError(f"modality {', '.join(unknown)} is not in its config, which has {', '.join(named)}.")
        values["modalities"] = {key: part for key, part in named.items() if key in modalities}
        values["methods"] = {key: part for key, part in values["methods"].items() if key in modalities}
        model = values["model"]
        model["bottlenecks"] = tuple(pair for pair in model["bottlenecks"] if pair[0] in modalities)
        if left_out := named.keys() - set(modalities):
            values["training"]["groups"] = _groups(values, config.to_dict(), left_out)
    return resolve(ConfigDict(values))


def _groups(values: dict[str, Any], whole: dict[str, Any], left_out: Collection[str]) -> Groups:
    """Groups of parameters of a config that some modalities of its file are left out of."""
    groups = build(TrainingConfig, whole["training"], "training").groups
    if not groups:
        return groups
    without = {"training": whole["training"] | {"groups": ()}}
    some = resolve(ConfigDict(values | without))
    try:
        every = resolve(ConfigDict(whole | without))
    except ConfigError:  # such as an inter-modal tower, which takes two at a time
        every = None
    return groups_of_some(some, groups, every, left_out)
