"""What a comparison is told: methods, each a config file, and the seeds that each is trained with."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from mmrec_jax.config import build
from mmrec_jax.errors import ConfigError

PLANS = ("plain", "staged")
LEAST_DRAWS = 100
"""Resamples of which the ends of an interval can be told."""
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+\-]*")
_NO_FOLDER = "is no name of a folder: use letters, digits, _, + and -."


@dataclass(frozen=True)
class Entry:
    """One of the methods that are compared.

    Attributes:
        config: its config file, `FILE` or `FILE:ARGUMENT`; relative to the comparison's own file.
        settings: `KEY=VALUE` texts, as after `--config.` on a command line.
        modalities: those of the config's that it has; () is all of them.
        stages: modalities of each stage of a staged plan, in place of the comparison's own stages.
        warm_start: whether a stage begins with the parameters of the stage before it, or with fresh ones.
    """

    config: str = ""
    settings: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    stages: tuple[tuple[str, ...], ...] = ()
    warm_start: bool = True

    def __post_init__(self) -> None:
        if not self.config:
            raise ConfigError("config is empty: name a config file.")


@dataclass(frozen=True)
class Comparison:
    """A comparison.

    Attributes:
        name: of it; also its directory under `runs/`.
        runs: name -> method.
        seeds: that every method is trained with.
        baseline: the method that the others are compared with, in a staged plan stage by stage of the same number;
            "" is the first, and in a staged plan none: each stage is compared with the stage before.
        plan: `plain`, or `staged`: every method is trained with the modalities of one stage after another.
        stages: of a staged plan: the modalities of each stage.
        settings: `KEY=VALUE` texts for all methods; a method's own come after them.
        ks: cut-offs of the metrics; tables and plot show the first.
        jobs: runs at the same time. More than one disturbs the times that are measured.
        bootstrap: resamples behind the intervals, 100 or more.
        confidence: coverage of the intervals; differences are marked where p is below what it leaves.
    """

    name: str
    runs: dict[str, Entry]
    seeds: tuple[int, ...] = (0,)
    baseline: str = ""
    plan: str = "plain"
    stages: tuple[tuple[str, ...], ...] = ()
    settings: tuple[str, ...] = ()
    ks: tuple[int, ...] = (10, 20)
    jobs: int = 1
    bootstrap: int = 2000
    confidence: float = 0.95

    def __post_init__(self) -> None:
        problems = [f"{where} {rule}" for where, holds, rule in self._rules() if not holds]
        if problems:
            raise ConfigError("\n".join(problems))

    def _rules(self) -> list[tuple[str, bool, str]]:
        names = ", ".join(self.runs)
        staged = self.plan == "staged"
        rules = [
            ("runs:", bool(self.runs), "there is none to compare."),
            (f"seeds={self.seeds}:", bool(self.seeds), "name at least one, such as 0,1,2."),
            (f"seeds={self.seeds}:", len(set(self.seeds)) == len(self.seeds), "each may occur once."),
            (f"seeds={self.seeds}:", all(0 <= seed < 2**32 for seed in self.seeds), "each from 0 to 2**32 - 1."),
            (f"plan={self.plan!r}:", self.plan in PLANS, f"choose one of {', '.join(PLANS)}."),
            (f"baseline={self.baseline!r}:", self.baseline in ("", *self.runs), f"choose one of {names}."),
            ("stages:", staged or not self._has_stages(), "they need plan='staged'."),
            (f"ks={self.ks}:", bool(self.ks) and min(self.ks) >= 1, "name at least one cut-off, each 1 or more."),
            (f"jobs={self.jobs}:", self.jobs >= 1, "must be 1 or more."),
            (f"bootstrap={self.bootstrap}:", self.bootstrap >= LEAST_DRAWS, f"must be {LEAST_DRAWS} or more."),
            (f"confidence={self.confidence}:", 0 < self.confidence < 1, "must lie between 0 and 1."),
        ]
        for name, entry in self.runs.items():
            rules.append((f"runs: {name!r}", bool(_FOLDER.fullmatch(name)), _NO_FOLDER))
            stages = entry.stages or self.stages
            if staged:
                rules.append((f"runs.{name}:", bool(stages), "has no stages: name them here or for all methods."))
                rules.append((f"runs.{name}.stages:", all(stages), "a stage has at least one modality."))
                both = bool(entry.modalities)
                rules.append((f"runs.{name}.modalities:", not both, "a staged plan names modalities by its stages."))
        return rules

    def _has_stages(self) -> bool:
        return bool(self.stages) or any(entry.stages for entry in self.runs.values())


def comparison(name: str) -> ConfigDict:
    """A config of a comparison without methods yet: `config.runs.NAME = run(...)` adds one."""
    fields = dataclasses.fields(Comparison)
    plain = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    config = ConfigDict({"name": name} | plain)
    config.runs = ConfigDict(sort_keys=False)  # they stay in the order in which they are added
    return config


def run(config: str, *settings: str, **values: Any) -> ConfigDict:
    """A method's section: its config file, `KEY=VALUE` settings, and other keys of `Entry`."""
    fields = dataclasses.fields(Entry)
    section = ConfigDict({field.name: field.default for field in fields})
    section.update({"config": config, "settings": settings} | values)
    return section


def of_configs(files: Sequence[str], names: Sequence[str]) -> ConfigDict:
    """The comparison of config files as they are.

    Raises:
        ConfigError: two of them have one name, or one that is no folder's.
    """
    config = comparison("compare")
    if wrong := [f"{file}: config.name={name!r} {_NO_FOLDER}" for name, file in zip(names, files, strict=True)
                 if not _FOLDER.fullmatch(str(name))]:  # fmt: skip
        raise ConfigError("--configs: " + "\n".join(wrong))
    for name, file in zip(names, files, strict=True):
        if name in config.runs:
            raise ConfigError(
                f"--configs: {config.runs[name].config} and {file} are both named {name!r}. Give one another "
                "config.name, or write a comparison file (see docs/comparing.md)."
            )
        config.runs[name] = run(file)
    return config


def is_comparison(config: ConfigDict | None) -> bool:
    """Whether a config is one of a comparison, and not of a run."""
    return config is not None and "runs" in config and "seeds" in config


def resolve_comparison(config: ConfigDict) -> Comparison:
    """The typed comparison.

    Raises:
        ConfigError: the config is one of a run, has a key nobody knows or a value that cannot be.
    """
    if not is_comparison(config):
        raise ConfigError(
            f"{config.get('name', 'the config')} is the config of one run: --mode=compare takes a comparison, such as "
            "configs/compare.py, or --configs=A.py,B.py."
        )
    values: dict[str, Any] = dict(config.items())
    values["runs"] = {
        name: build(Entry, section, f"runs.{name}") if isinstance(section, Mapping | ConfigDict) else section
        for name, section in config.runs.items()
    }
    if wrong := [name for name, section in values["runs"].items() if not isinstance(section, Entry)]:
        raise ConfigError(f"runs.{wrong[0]}: write run('FILE.py', ...).")
    return build(Comparison, values, "the comparison")
