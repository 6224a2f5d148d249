"""Versions of a stream's model as workdirs that every mode opens, and the way back to an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec_jax import experiment
from mmrec_jax.config import RunConfig, to_json
from mmrec_jax.errors import ConfigError
from mmrec_jax.modes.workdir import CONFIG_FILE, read_config

if TYPE_CHECKING:
    from mmrec_jax.streaming.versions import Change
    from mmrec_jax.types import Params

PREVIOUS = "previous"


def publish(
    config: RunConfig,
    workdir: Path,
    window: int,
    params: Params,
    reason: str,
    documents: Mapping[str, Any] | None = None,
    after: int | None = None,
) -> Change | None:
    """Makes parameters a version of a stream's workdir, and puts it in service.

    The version reads the stream's own data and store, by links relative to it, so that the workdir may be moved.

    Args:
        config: of the stream.
        workdir: of the stream; what is served was written there.
        window: the one that was trained on last.
        params: of the model.
        reason: why it is promoted.
        documents: further JSON documents of the version, by file name.
        after: number of the change that the promotion was decided on, see `Versions.promote`.

    Returns:
        The change; None where a roll-back came meanwhile, which stays.
    """
    from mmrec_jax.data.layouts import STREAMED
    from mmrec_jax.streaming import served
    from mmrec_jax.streaming.versions import Versions

    store = experiment.open_store(experiment.store_location(config, workdir))
    links = {"data": f"../../{served.FOLDER}/{served.CURRENT}"}
    if not config.store:
        links["store"] = "../../store"
    config = replace(
        config, data=replace(config.data, source=STREAMED), prepared="", baselines=(), model=_as_grown(config, params)
    )
    description = experiment.description(config, served.current(workdir).fingerprint, store)
    return Versions(workdir).promote(
        window,
        params,
        description,
        reason=reason,
        documents={**(documents or {}), CONFIG_FILE: to_json(config)},
        links=links,
        after=after,
    )


def roll_back(workdir: str | None, version: str) -> None:
    """Puts an earlier version of a stream's workdir in service, and says so.

    Args:
        workdir: of the stream.
        version: number of its window, or `previous`.

    Raises:
        ConfigError: no workdir, or no number.
        CheckpointError: there is no such version.
    """
    from mmrec_jax.modes.run import terminal
    from mmrec_jax.streaming.versions import Versions

    if not workdir or read_config(Path(workdir)) is None:
        raise ConfigError("--rollback needs the --workdir of a stream.")
    if version != PREVIOUS and not version.isdigit():
        raise ConfigError(f"--rollback={version}: give the number of a version, or {PREVIOUS}.")
    change = Versions(Path(workdir)).roll_back(None if version == PREVIOUS else int(version))
    terminal().print(
        f"Version {change.version} is in service ({change.reason}). The next window is trained from its parameters."
    )


def in_service(workdir: Path) -> Path:
    """The workdir of the version in service, of a stream's workdir; any other workdir as it is."""
    from mmrec_jax.streaming.versions import Versions

    versions = Versions(workdir)
    version = versions.in_service()
    return workdir if version is None else versions.path(version)


def _as_grown(config: RunConfig, params: Params):
    """The model's config with as many slots as the parameters have: they may have been grown at capacity."""
    from mmrec_jax.streaming import growth

    slots = {rung.capacity for rung in growth.rungs(params).values()}
    return replace(config.model, capacity=max(slots)) if slots else config.model
