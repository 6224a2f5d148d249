"""What came out of a comparison's runs: means over seeds, paired differences, costs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int

from mmrec_jax.comparison.config import Comparison
from mmrec_jax.comparison.cost import Cost, mean_cost, tpme
from mmrec_jax.comparison.plan import Trial, Variant
from mmrec_jax.config import to_json
from mmrec_jax.errors import EvaluationError
from mmrec_jax.evaluation.pairing import HeldOut, unpaired
from mmrec_jax.evaluation.ranking import MISS
from mmrec_jax.evaluation.seeds import SeedMean, seed_differences, seed_means
from mmrec_jax.evaluation.significance import Difference, holm
from mmrec_jax.modes.results import RANKS
from mmrec_jax.modes.workdir import differences, read_config

# What may differ between a finished run and the one that is asked for: where things lie and what is shown.
_ELSEWHERE = ("name", "store", "prepared", "data.source", "baselines", "show_users", "on_unknown_item")


@dataclass(frozen=True)
class Outcome:
    """A row of the table.

    Attributes:
        variant: what was trained.
        seeds: that it is a mean of.
        metrics: name such as "NDCG@10" -> mean over seeds.
        cost: of a run.
        trainings: seed -> section `training` of the run's results.
        tpme: among all rows.
        differences: metric -> to the row that the variant is compared with; {} where there is none.
        holm: metric -> p-value of the difference, adjusted for the number of those in the table that rows of
            other runs have.
    """

    variant: Variant
    seeds: tuple[int, ...]
    metrics: dict[str, SeedMean]
    cost: Cost
    trainings: dict[int, dict[str, Any]]
    tpme: float = 0.0
    differences: dict[str, Difference] = field(default_factory=dict)
    holm: dict[str, float] = field(default_factory=dict)


def results_of(trial: Trial, fingerprint: str) -> dict[str, Any] | None:
    """Evaluation and training of a finished trial; None where it is to be trained yet, or was of another config or of
    other data."""
    path = trial.workdir / "results.json"
    kept = read_config(trial.workdir)
    if kept is None or not path.exists() or not (trial.workdir / RANKS).exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("data") != fingerprint or differences(_relevant(kept), _relevant(trial.config)):
        return None
    return next(iter(content["models"].values()))


def read_ranks(trial: Trial, held: HeldOut) -> Int[np.ndarray, " user"]:
    """Rank of each user's held-out item, in the order of the users' ids.

    Raises:
        EvaluationError: the run was evaluated on other users or items.
    """
    table = pl.read_parquet(trial.workdir / RANKS).sort("user")
    found = replace(held, users=np.array(table["user"].to_list()), targets=np.array(table["item"].to_list()))
    if texts := unpaired(held, found):
        raise EvaluationError(f"{trial.workdir / RANKS} is of other examples: {'; '.join(texts)}. Remove this folder.")
    return table["rank"].fill_null(MISS).to_numpy()


def outcomes(
    comparison: Comparison, trials: Sequence[Trial], finished: Mapping[str, dict[str, Any]], held: HeldOut
) -> list[Outcome]:
    """The rows of the table, in the comparison's order.

    Where a stage of a method failed with a seed, all its stages are without that seed: they are compared run by run.
    Runs are paired by seed where both rows have the same seeds and, with each, one began with the parameters of the
    other or both with those of a third.

    Args:
        comparison: what is compared.
        trials: all of them.
        finished: title of a trial -> its results, for those that finished.
        held: what they were evaluated on.
    """
    done = _kept(trials, finished)
    if not done:
        return []
    ranks = {name: np.stack([read_ranks(trial, held) for trial in own]) for name, own in done.items()}
    rows, same = [], set()
    for name, own in done.items():
        variant, trainings = own[0].variant, {trial.seed: finished[trial.title]["training"] for trial in own}
        means = seed_means(ranks[name], comparison.ks, confidence=comparison.confidence, resamples=comparison.bootstrap)
        found: dict[str, Difference] = {}
        if (other := variant.reference) in ranks:
            paired = _paired(own, done[other])
            found = seed_differences(
                ranks[name],
                ranks[other],
                comparison.ks,
                paired=paired,
                confidence=comparison.confidence,
                resamples=comparison.bootstrap,
            )
            if paired and np.array_equal(ranks[name], ranks[other]):
                same.add(name)
        cost = mean_cost(list(trainings.values()))
        rows.append(Outcome(variant, tuple(trainings), means, cost, trainings, differences=found))
    return _among_all(rows, same)


def _paired(first: Sequence[Trial], second: Sequence[Trial]) -> bool:
    """Whether the runs of two rows are paired by seed."""
    seeds = [[trial.seed for trial in row] for row in (first, second)]
    return seeds[0] == seeds[1] and all(_lineage(a) & _lineage(b) for a, b in zip(first, second, strict=True))


def _lineage(trial: Trial) -> set[Path]:
    """A run, the one whose parameters it began with, and so on: where the same training was done first."""
    return {trial.like or trial.workdir} | (_lineage(trial.after) if trial.after else set())


def _kept(trials: Sequence[Trial], finished: Mapping[str, Any]) -> dict[str, list[Trial]]:
    """Trials that count, by their row: those of the seeds with which all stages of the method finished.

    A stage that finished with no seed is left out, and the others stay.
    """
    of_row: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        of_row.setdefault(trial.variant.name, []).append(trial)
    seeds: dict[str, set[int]] = {}
    for tried in of_row.values():
        method = tried[0].variant.method
        if own := {trial.seed for trial in tried if trial.title in finished}:
            seeds[method] = (own & seeds.get(method, own)) or seeds[method]
    kept = {
        name: [trial for trial in tried if trial.title in finished and trial.seed in seeds[trial.variant.method]]
        for name, tried in of_row.items()
    }
    return {name: tried for name, tried in kept.items() if tried}


def _among_all(rows: Sequence[Outcome], same: Collection[str]) -> list[Outcome]:
    """The rows with what depends on the others: TPME and adjusted p-values.

    Rows that are the `same` runs as what they are compared with cannot differ: their p is 1, and no other's is adjusted
    for them.
    """
    figures = tpme([row.cost for row in rows])
    compared = [row for row in rows if row.differences and row.variant.name not in same]
    adjusted = {row.variant.name: {metric: value.p_value for metric, value in row.differences.items()} for row in rows}
    for metric in compared[0].differences if compared else ():
        values = holm([row.differences[metric].p_value for row in compared])
        for row, value in zip(compared, values, strict=True):
            adjusted[row.variant.name][metric] = value
    return [
        replace(row, tpme=figure, holm=adjusted[row.variant.name]) for row, figure in zip(rows, figures, strict=True)
    ]


def _relevant(config: Any) -> dict[str, Any]:
    plain = to_json(config)
    plain["data"] = {key: value for key, value in plain["data"].items() if f"data.{key}" not in _ELSEWHERE}
    return {key: value for key, value in plain.items() if key not in _ELSEWHERE}
