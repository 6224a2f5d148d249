"""Evaluates the best checkpoints of a finished run."""

from __future__ import annotations

from typing import Any

from mmrec_jax.modes.results import Outcome, popularity, report, tested
from mmrec_jax.modes.run import Run
from mmrec_jax.modes.train import id_run
from mmrec_jax.modes.workdir import is_trained

RANKS = "ranks_evaluation.parquet"
"""Not that of the training: the config may say another protocol now."""


def evaluate(run: Run) -> dict[str, Any]:
    """Prints the tables of the run and of its baselines, and writes them to `evaluation.json` and `report.md`, and the
    users' ranks to `ranks_evaluation.parquet`.

    A baseline that was not trained is left out.

    Returns:
        The content of `evaluation.json`.

    Raises:
        CheckpointError: no usable checkpoint, or one of something else.
    """
    outcomes = {run.config.name: _outcome(run)}
    for name in run.config.baselines:
        baseline = id_run(run)
        if name == "popularity":
            outcomes[name] = popularity(run)
        elif is_trained(baseline.workdir):
            outcomes[name] = _outcome(baseline)
    return report(run, outcomes, "evaluation")


def _outcome(run: Run) -> Outcome:
    from mmrec_jax.training import load_params

    params = run.parameters()
    progress = load_params(run.workdir, "last")[1]["progress"]
    return tested(run, params, progress["history"], progress["best_step"], progress["best_value"], RANKS)
