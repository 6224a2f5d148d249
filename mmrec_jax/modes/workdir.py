"""The config that a workdir keeps, and what may change of it once something was trained there."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrec_jax.config import RunConfig, from_json, to_json
from mmrec_jax.errors import ConfigError
from mmrec_jax.files import write_whole

CONFIG_FILE = "config.json"

# Keys that change what is shown, how long a run goes on or where files lie, but not what is trained. Places of data
# and backbones are among them: what lies there is compared by its digest.
FREE = (
    "name",
    "mode",
    "baselines",
    "show_users",
    "on_unknown_item",
    "store",
    "prepared",
    "data.source",
    "extraction.*",
    "evaluation.*",
    "modalities.*.backbone",
    "modalities.*.revision",
    "methods.*.remat",
    "methods.*.scan",
    "methods.*.chunk",
    "methods.*.heads",
    "methods.*.start",
    "parallel.data",
    "parallel.model",
    "parallel.expert",
    "parallel.rules",
    "parallel.timeout_seconds",
    "parallel.stuck_seconds",
    "plan.*",
    "service.*",
    "training.epochs",
    "training.patience",
    "training.keep",
    "training.log_every",
    "training.checkpoint_every_steps",
    "training.compilation_cache_dir",
    "training.tensorboard",
    "training.learning_curve",
    "training.progress",
)
FIXED_IN_STREAMS = ("training.epochs", "training.patience")
"""Keys that a stream's windows are all trained by, so that it is another stream with others."""


def read_config(workdir: Path) -> RunConfig | None:
    """The config that a workdir keeps; None where there is none.

    Raises:
        ConfigError: the file is damaged, or of a version with other keys.
    """
    path = workdir / CONFIG_FILE
    try:
        return from_json(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON ({error}): give --config, or another --workdir.") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def keep_config(config: RunConfig, workdir: Path) -> None:
    """Writes the config into a workdir, all at once.

    Raises:
        ConfigError: the workdir cannot be written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_whole(workdir / CONFIG_FILE, json.dumps(to_json(config), indent=2))
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be written to: {error}.") from error


def check_same_run(config: RunConfig, workdir: Path) -> list[str]:
    """What a config changes in the run that a workdir holds, as far as that is allowed; one text a key.

    Raises:
        ConfigError: something was trained there, and the config would make another run of it: names every key.
    """
    changed, refused = changes(config, workdir)
    if refused:
        raise ConfigError(
            f"{workdir} holds a run that was trained with another config:\n  "
            + "\n  ".join(refused)
            + "\nChoose another --workdir, change the config back, or leave --config out to use the run's own."
        )
    return changed


def changes(config: RunConfig, workdir: Path, fixed: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """What a config changes in the run that a workdir holds, one text a key: all of it, and what would make another run
    of it. `fixed` are keys that may not be changed either.

    Raises:
        ConfigError: the config that the workdir keeps cannot be read.
    """
    streamed = is_streamed(workdir)
    kept = read_config(workdir) if streamed or is_trained(workdir) else None
    if kept is None:
        return [], []
    changed = differences(to_json(kept), to_json(config))
    free = [key for key in FREE if key not in fixed and not (streamed and key in FIXED_IN_STREAMS)]
    refused = [text for key, text in changed.items() if not any(fnmatch.fnmatch(key, name) for name in free)]
    return list(changed.values()), refused


def is_trained(workdir: Path) -> bool:
    """Whether a workdir, or a folder of checkpoints itself, holds a finished checkpoint."""
    from mmrec_jax.training.checkpoints import checkpoint_directory

    return _has_checkpoint(checkpoint_directory(workdir))


def is_streamed(workdir: Path) -> bool:
    """Whether a workdir holds a finished checkpoint of a stream, or of the training on its first window."""
    from mmrec_jax.streaming.state import FOLDER
    from mmrec_jax.training.checkpoints import FOLDER as CHECKPOINTS

    return any(map(_has_checkpoint, (workdir / FOLDER, *workdir.glob(f"windows/*/{CHECKPOINTS}"))))


def _has_checkpoint(folder: Path) -> bool:
    found = folder.glob("step_*")  # among them what a killed save left, with a longer name
    return any(path.name.removeprefix("step_").isdigit() for path in found)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Key -> what differs, for every value of two configs in plain form."""
    old, new = _flat(before), _flat(now)
    return {
        key: f"{key}: {old.get(key, '(none)')!r} there, {new.get(key, '(none)')!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, "(none)") != new.get(key, "(none)")
    }


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat
