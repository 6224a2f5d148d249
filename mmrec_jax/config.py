"""The config of a run: one `ml_collections` tree built from the rooms' own dataclasses, and back.

Each section is a frozen dataclass of the room that reads it, so that every key has one home, one default and one
check. A config file is a page that starts from `base()`; unknown keys fail when it is loaded or overridden, impossible
values when `resolve` builds the dataclasses, both before anything is compiled.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ml_collections import config_dict

from mmrec_jax.adapters.config import MethodConfig
from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig
from mmrec_jax.data.config import DataConfig
from mmrec_jax.errors import ConfigError
from mmrec_jax.evaluation.config import EvaluationConfig
from mmrec_jax.files import check_local
from mmrec_jax.fusion import FusionConfig
from mmrec_jax.fusion.config import unread as unread_of_fusion
from mmrec_jax.objectives import ObjectiveConfig
from mmrec_jax.parallel.config import ParallelConfig
from mmrec_jax.planning.config import PlanConfig
from mmrec_jax.streaming.config import StreamConfig
from mmrec_jax.streaming.service_config import ServiceConfig
from mmrec_jax.systems import registry
from mmrec_jax.systems.config import ModelConfig, ScoringConfig, UserConfig, unread_of_model, unread_of_scoring
from mmrec_jax.training.config import TrainingConfig

BASELINES = ("popularity", "sasrec")
VALIDATED = ("HR", "NDCG", "MRR")
"""Metrics that each validation computes."""
T = TypeVar("T")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is told.

    Attributes:
        name: of the run; also its directory under `runs/`.
        modalities: the item's modalities, in the order of all tables and weights; none for systems by id.
        methods: modality -> what is trained inside its backbone, which is then run in the step ("live"); hidden states
            of modalities without an entry come from the store.
        store: directory or gs:// URL of the hidden-state store; "" is the sample's own, else `store` in the workdir.
        prepared: directory of prepared data, for runs that share it; "" is `data` in the workdir.
        baselines: trained and evaluated beside the model, of `BASELINES`.
        show_users: users whose last items and recommendations are printed after training.
        warm_start: workdir of a finished run with fewer modalities to begin from; `{workdir}` in it is this run's own.
        mode: what the command line does with the config where it does not say: `train`, or `stream`.
        on_unknown_item: what a history with items outside the catalogue is: an `error`, or `skip` (and count) them.
    """

    name: str
    data: DataConfig
    modalities: dict[str, ModalityConfig]
    extraction: ExtractionConfig
    model: ModelConfig
    fusion: FusionConfig
    user: UserConfig
    scoring: ScoringConfig
    objective: ObjectiveConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    methods: dict[str, MethodConfig] = dataclasses.field(default_factory=dict)
    stream: StreamConfig = dataclasses.field(default_factory=StreamConfig)
    plan: PlanConfig = dataclasses.field(default_factory=PlanConfig)
    service: ServiceConfig = dataclasses.field(default_factory=ServiceConfig)
    store: str = ""
    prepared: str = ""
    baselines: tuple[str, ...] = ()
    show_users: int = 3
    warm_start: str = ""
    on_unknown_item: str = "error"
    mode: str = "train"

    def __post_init__(self):
        unknown = [name for name in self.baselines if name not in BASELINES]
        if unknown:
            raise ConfigError(f"baselines: {', '.join(unknown)} unknown; choose from {', '.join(BASELINES)}.")
        if self.on_unknown_item not in ("error", "skip"):
            raise ConfigError(f"on_unknown_item={self.on_unknown_item!r}: choose error or skip.")
        if self.mode not in ("train", "stream"):
            raise ConfigError(f"mode={self.mode!r}: choose train or stream.")
        registry.check(self)
        stray = [name for name, _ in self.model.bottlenecks if name not in self.modalities]
        if stray:
            raise ConfigError(f"model.bottlenecks names {', '.join(stray)}, which is no modality of this config.")
        self._check_methods()
        self._check_groups()
        if self.user.kind == "sasrec" and self.model.width % self.user.heads:
            raise ConfigError(f"user.heads={self.user.heads} does not divide the width {self.model.width}.")
        if self.user.kind == "gru" and self.user.heads != UserConfig.heads:
            raise ConfigError(f"user.heads={self.user.heads} means nothing to user.kind='gru', which has none.")
        if self.warm_start and not self.modalities:
            raise ConfigError("warm_start adds modalities to a finished model; an ID table has none.")
        if not re.fullmatch(rf"({'|'.join(VALIDATED)})@[1-9][0-9]*", self.training.monitor):
            raise ConfigError(
                f"training.monitor={self.training.monitor!r}: choose one of {', '.join(VALIDATED)} at a cut-off, "
                "such as NDCG@10."
            )
        if self.show_users < 0:
            raise ConfigError(f"show_users={self.show_users}: a number of users, or 0 for none.")
        check_local("prepared", self.prepared)
        check_local("warm_start", self.warm_start)

    @property
    def cached(self) -> dict[str, ModalityConfig]:
        """The modalities whose hidden states come from the store."""
        return {name: part for name, part in self.modalities.items() if name not in self.methods}

    def _check_groups(self) -> None:
        """Finds patterns that are plain paths and begin like no parameter's; the others meet the parameters later."""
        paths = ["items/", "users/"]
        paths += ["scale/"] if self.scoring.learn_scale else []
        paths += ["embedded/"] if any(method.kind != "frozen" for method in self.methods.values()) else []
        for pattern, _ in self.training.groups:
            top = pattern[: pattern.find("/") + 1] or pattern
            if re.fullmatch(r"[\w/]+", pattern) and not any(path.startswith(top) for path in paths):
                raise ConfigError(
                    f"training.groups: {pattern!r} matches the beginning of no parameter path; they begin with "
                    f"{', '.join(paths)}."
                )

    def _check_methods(self) -> None:
        stray = [name for name in self.methods if name not in self.modalities]
        if stray:
            known = ", ".join(self.modalities) or "none"
            raise ConfigError(f"methods names {', '.join(stray)}, which is no modality of this config ({known}).")
        if self.methods and self.objective.candidates != "batch":
            raise ConfigError(
                f"objective.kind={self.objective.kind!r} scores items that are not in the batch, whose backbone would "
                "have to be run too: live modalities (methods) need objective.kind='in_batch_softmax'."
            )


NAMED: dict[str, type] = {"modalities": ModalityConfig, "methods": MethodConfig}
"""Keys that hold a section for each modality, by its name."""
SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "extraction": ExtractionConfig,
    "model": ModelConfig,
    "fusion": FusionConfig,
    "user": UserConfig,
    "scoring": ScoringConfig,
    "objective": ObjectiveConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
    "parallel": ParallelConfig,
    "stream": StreamConfig,
    "plan": PlanConfig,
    "service": ServiceConfig,
}


_UNREAD = {"model": unread_of_model, "fusion": unread_of_fusion, "scoring": unread_of_scoring}


def base(name: str) -> config_dict.ConfigDict:
    """A config with every section at its defaults and no modality."""
    plain = {
        field.name: field.default for field in dataclasses.fields(RunConfig) if field.default is not dataclasses.MISSING
    }
    sections = {key: _section(cls) for key, cls in SECTIONS.items()}
    return config_dict.ConfigDict({"name": name, **{key: {} for key in NAMED}} | sections | plain)


def modality(**values: Any) -> config_dict.ConfigDict:
    """A modality's section: the given values over the defaults of `ModalityConfig`."""
    section = _section(ModalityConfig)
    section.update(values)
    return section


def method(**values: Any) -> config_dict.ConfigDict:
    """A live modality's section of `methods`: the given values over the defaults of `MethodConfig`."""
    section = _section(MethodConfig)
    section.update(values)
    return section


def resolve(config: config_dict.ConfigDict) -> RunConfig:
    """The typed config.

    Raises:
        ConfigError: a key nobody knows, a value of the wrong type, or an impossible combination.
    """
    values: dict[str, Any] = {}
    for key, value in config.items():
        if key in SECTIONS:
            values[key] = build(SECTIONS[key], value, key)
        elif key in NAMED:
            values[key] = {name: build(NAMED[key], part, f"{key}.{name}") for name, part in value.items()}
        else:
            values[key] = _tuples(value)
    return _construct(RunConfig, values, "the config")


def unknown_argument(file: str, argument: str, *known: str) -> ConfigError:
    """The error of a config file that is given an argument (`file.py:argument`) it does not know."""
    choices = f"it knows {' and '.join(known)}" if known else "it takes none"
    return ConfigError(f"{file}:{argument}: the config file does not know the argument {argument!r}; {choices}.")


def to_json(config: RunConfig) -> dict[str, Any]:
    """Plain values for a manifest; `from_json` is the way back."""
    return _plain(dataclasses.asdict(config))


def from_json(values: dict[str, Any]) -> RunConfig:
    """The config that `to_json` wrote. What earlier versions took and nothing read is at its default."""
    read = {
        part: {key: value for key, value in values[part].items() if key not in keys}
        for part, keys in unread(values).items()
    }
    return resolve(config_dict.ConfigDict(values | read))


def unread(values: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Section -> keys that its other values leave without a reader, of a config in plain form."""
    return {
        part: tuple(find(dataclasses.asdict(SECTIONS[part]()) | dict(values[part])))
        for part, find in _UNREAD.items()
        if isinstance(values.get(part), Mapping)
    }


def _section(cls: type) -> config_dict.ConfigDict:
    """Defaults of a dataclass; a default of None becomes a placeholder that knows its type."""
    section = config_dict.ConfigDict()
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.default is None:
            kind = next(t for t in typing.get_args(hints[field.name]) if t is not types.NoneType)
            section[field.name] = config_dict.placeholder(kind)
        else:
            section[field.name] = field.default
    return section


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """A section's dataclass of plain values; `where` names the section in errors.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, or one that cannot be.
    """
    return _construct(cls, {key: _tuples(value) for key, value in values.items()}, where)


def _construct(cls: type[T], values: dict[str, Any], where: str) -> T:
    hints = typing.get_type_hints(cls)
    known = {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass
    unknown = sorted(set(values) - set(known))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1)
        raise ConfigError(
            f"{where}: unknown key {', '.join(unknown)}.{f' Did you mean {near[0]}?' if near else ''} "
            f"Known keys: {', '.join(known)}."
        )
    wrong = [
        f"{key}={value!r} must be {_type_name(known[key])}"
        for key, value in values.items()
        if not _fits(value, known[key])
    ]
    if wrong:
        raise ConfigError(f"{where}: {'; '.join(wrong)}.")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a dataclass field; whole numbers pass for floats."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_fits(part, parts[0]) for part in value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if origin is not None:
        return isinstance(value, origin)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _tuples(value: Any) -> Any:
    """JSON and ml_collections have lists where the dataclasses have tuples."""
    return tuple(_tuples(part) for part in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
