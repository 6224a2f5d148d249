"""A run that begins with the parameters of a finished one with fewer modalities."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

from mmrec_jax.errors import CheckpointError
from mmrec_jax.modes.run import Run
from mmrec_jax.modes.workdir import is_trained
from mmrec_jax.training.processes import writes
from mmrec_jax.types import Params

REPORT = "warm_start.json"
_SECTIONS = ("system", "model", "fusion", "user", "scoring")


def warm_parameters(run: Run) -> Params | None:
    """Parameters of the run that `warm_start` names, inside fresh ones of this run; what came from where is written
    to `warm_start.json`. None without `warm_start`, and for a run that has begun already.

    Raises:
        CheckpointError: the other run is of another system, of other sizes or backbones, or has parameters that
            have no place here.
    """
    from mmrec_jax.adapters.towers import growth_rules
    from mmrec_jax.training import load_params, warm_start
    from mmrec_jax.training.trees import named_leaves

    source = run.config.warm_start
    if "{workdir}" in source:
        source = os.path.normpath(source.replace("{workdir}", str(run.workdir)))
    if not source or is_trained(run.workdir):
        return None
    if not is_trained(Path(source)):
        raise CheckpointError(f"warm_start={source}: there is no checkpoint. Name the workdir of a finished run.")
    old, manifest = load_params(source)
    if found := _strangeness(manifest["run"], run.description()):
        raise CheckpointError(
            f"warm_start={source} is of something else than this run:\n  "
            + "\n  ".join(found)
            + "\nA warm start may add modalities and change nothing else of the model."
        )
    fresh = run.fresh(jax.random.key(run.config.training.seed))
    params, report = warm_start(old, fresh, growth_rules(named_leaves(fresh)))
    added = sorted(set(run.config.modalities) - set(manifest["run"]["modalities"]))
    grown = f"{len(report.grown)} grown, " if report.grown else ""
    run.console.print(
        f"Warm start from {source}: {len(report.restored)} parameters restored, {grown}{len(report.new)} new "
        f"(for {', '.join(added) or 'nothing'}); all are listed in {run.workdir / REPORT}"
    )
    if writes():
        (run.workdir / REPORT).write_text(json.dumps({"from": source, **asdict(report)}, indent=2), encoding="utf-8")
    return params


def _strangeness(before: Mapping[str, Any], now: dict[str, Any]) -> list[str]:
    """What the two runs must share and do not, one text each."""
    from mmrec_jax.training.manifest import completed, differences

    before = completed(before, now)
    old, new = ({key: run.get(key) for key in _SECTIONS} for run in (before, now))
    # Bottlenecks of modalities that are added are no difference.
    kept = [pair for pair in (new["model"] or {}).get("bottlenecks", []) if pair[0] in before["modalities"]]
    new["model"] = {**(new["model"] or {}), "bottlenecks": kept}
    shared = {name: now["modalities"].get(name, "(absent)") for name in before["modalities"]}
    return differences(old | {"modalities": before["modalities"]}, new | {"modalities": shared})
