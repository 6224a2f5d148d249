"""Trains, evaluates the best checkpoint beside the baselines, and shows what it recommends."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmrec_jax import experiment
from mmrec_jax.modes.results import RANKS, Outcome, popularity, report, show_users, tested
from mmrec_jax.modes.run import Run
from mmrec_jax.modes.warm import warm_parameters
from mmrec_jax.parallel.preemption import REQUEST

if TYPE_CHECKING:
    from mmrec_jax.training.items import SequentialFrozen
    from mmrec_jax.types import Params


def train(run: Run) -> dict[str, Any]:
    """Trains a run and its baselines; writes `results.json`, `report.md` and `ranks_test.parquet` to the workdir.

    A second call in the same workdir goes on where the first was stopped, and only evaluates if nothing is left.

    Returns:
        The content of `results.json`.
    """
    run.console.print(run.data.describe())
    run.check()
    outcomes = {run.config.name: _train(run)}
    for name in run.config.baselines:
        outcomes[name] = popularity(run) if name == "popularity" else _train(id_run(run))
    content = report(run, outcomes, "results")
    if run.config.show_users:
        show_users(run, run.config.show_users)
    return content


def id_run(run: Run) -> Run:
    """The ID-only SASRec that a run is compared with, in a folder of the run's workdir."""
    return Run(experiment.id_baseline(run.config), run.workdir / "baselines" / "sasrec", run.console, baseline_of=run)


def _train(run: Run) -> Outcome:
    from mmrec_jax.training import fit

    run.console.print(f"\nTraining {run.config.name} in {run.workdir}")
    stream = experiment.training_stream(run.config, run.data, run.live, run.live_catalogue, run.shards)
    # The cache of compiled programs was set up when the run was opened, for all modes.
    training = replace(run.config.training, compilation_cache_dir="")
    try:
        description = run.description()
        frozen, begin = _beginning(run)
        with REQUEST.at_boundaries():
            fitted = fit(
                run.task,
                frozen,
                stream,
                training,
                run.workdir,
                description,
                begin,
                stop=REQUEST.boundary,
                placement=run.placement,
            )
    finally:
        stream.close()
    return tested(run, fitted.params, fitted.history, fitted.best_step, fitted.best_value, RANKS)


def _beginning(run: Run) -> tuple[SequentialFrozen, Params | None]:
    """What the run reads and never trains, and the parameters that it begins with, on the host; None for fresh ones.

    Where a backbone is run in the step, they are made here, so that the weights they are made of need not lie on the
    device beside them for the whole run.
    """
    from mmrec_jax.training.step import seed_keys

    begin, frozen = warm_parameters(run), run.frozen
    if frozen.live is None:
        return frozen, begin
    if begin is None:
        begin = run.fresh(seed_keys(run.config.training.seed)[0])
    return replace(frozen, live=frozen.live.begun()), begin
