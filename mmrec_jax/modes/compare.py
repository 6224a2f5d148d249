"""Several methods, or two finished runs, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mmrec_jax.comparison.config import Comparison, is_comparison, of_configs, resolve_comparison
from mmrec_jax.config_files import load_config
from mmrec_jax.errors import ConfigError


def compare(
    config: ConfigDict | None = None,
    config_file: str = "",
    *,
    workdir: str | Path | None = None,
    configs: Sequence[str] = (),
    seeds: Sequence[str] = (),
    baseline: str | None = None,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Trains and compares the methods of a comparison's config, or of config files as they are.

    Args:
        config: of the comparison; None with `configs`.
        config_file: where it was read from: the config files that it names are relative to that.
        workdir: None for `runs/<the comparison's name>`.
        configs: config files, `FILE` or `FILE:ARGUMENT`.
        seeds, baseline, jobs: in place of the comparison's.

    Returns:
        The content of `comparison.json`.

    Raises:
        UserError: see `mmrec_jax.comparison.compare`.
    """
    from mmrec_jax.comparison.compare import compare as run

    comparison, folder = _comparison(config, configs), Path(config_file).parent if config is not None else Path()
    if seeds:
        comparison = replace(comparison, seeds=_numbers(seeds))
    if baseline is not None:
        comparison = replace(comparison, baseline=baseline)
    if jobs is not None:
        comparison = replace(comparison, jobs=jobs)
    return run(comparison, Path(workdir) if workdir else Path("runs") / comparison.name, folder)


def ab(first: str | None, second: str | None, workdir: str | Path | None = None) -> dict[str, Any]:
    """Compares two finished runs user by user; returns the content of `ab.json`.

    Raises:
        UserError: see `mmrec_jax.comparison.ab`.
    """
    from mmrec_jax.comparison.ab import ab as run

    if not first or not second:
        raise ConfigError("ab needs --a=DIR and --b=DIR, the workdirs of two finished runs.")
    return run(Path(first), Path(second), Path(workdir or "runs/ab"))


def _comparison(config: ConfigDict | None, files: Sequence[str]) -> Comparison:
    if (config is None) == (not files):
        raise ConfigError("compare needs either --config=configs/compare.py or --configs=A.py,B.py.")
    if config is not None:
        return resolve_comparison(config)
    loaded = [load_config(file) for file in files]
    if wrong := [file for file, found in zip(files, loaded, strict=True) if is_comparison(found)]:
        raise ConfigError(f"--configs: {wrong[0]} is a comparison itself: give it as --config.")
    return resolve_comparison(of_configs(files, [found.name for found in loaded]))


def _numbers(texts: Sequence[str]) -> tuple[int, ...]:
    try:
        return tuple(int(text) for text in texts)
    except ValueError as error:
        raise ConfigError(f"--seeds={','.join(texts)}: write whole numbers, such as 0,1,2.") from error
