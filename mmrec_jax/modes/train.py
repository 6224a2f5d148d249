"""Trains, evaluates the best checkpoint beside the baselines, and shows what it recommends."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

import jax

from mmrec_jax import experiment
from mmrec_jax.errors import CheckpointError
from mmrec_jax.modes.run import Run

CACHE = "compilation_cache"


@dataclass
class Outcome:
    """A trained model's evaluation and how its training went."""

    result: object
    training: dict = field(default_factory=dict)


def train(run: Run) -> dict:
    """Trains a run and its baselines; writes `results.json`, `report.md` and `ranks_test.parquet` to the workdir.

    A second call in the same workdir goes on where the first was stopped, and only evaluates if nothing is left.

    Returns:
        The content of `results.json`.
    """
    from mmrec_jax.serving.recommender import Recommender

    outcomes = {run.config.name: _train_one(run)}
    for name in run.config.baselines:
        outcomes[name] = _popularity(run) if name == "popularity" else _train_one(_id_run(run))
    content = _report(run, outcomes)
    if run.config.show_users:
        show_users(run, Recommender.of_run(run), run.config.show_users)
    return content


def _train_one(run: Run) -> Outcome:
    from mmrec_jax.training import fit

    start = time.perf_counter()
    stream = experiment.training_stream(run.config, run.data)
    warm = _warm_parameters(run)
    try:
        fitted = fit(run.task, run.frozen, stream, run.config.training, run.workdir, run.description(), warm)
    finally:
        stream.close()
    seconds = time.perf_counter() - start
    _, result = run.test(fitted.params)
    result.write_ranks(run.workdir / "ranks_test.parquet", run.data.user_ids, run.data.item_ids)
    epochs = [entry["seconds"] for entry in fitted.history]
    return Outcome(
        result,
        {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(fitted.params)),
            "best_step": fitted.best_step,
            "best_validation": {run.config.training.monitor: fitted.best_value},
            "epochs": len(epochs),
            "seconds_per_epoch": sorted(epochs)[len(epochs) // 2] if epochs else 0.0,
            "seconds": seconds,
            "peak_memory_bytes": max((entry["peak_memory_bytes"] for entry in fitted.history), default=0),
            "stopped_early": fitted.stopped_early,
        },
    )


def _warm_parameters(run: Run):
    """Parameters of the run named by `warm_start` inside fresh ones of this run; None without one."""
    from mmrec_jax.training import load_params, warm_start

    if not run.config.warm_start:
        return None
    old, manifest = load_params(run.config.warm_start)
    stranger = [
        f"{section} was {manifest['run'][section]!r} and is {value!r}"
        for section, value in run.description().items()
        if section in ("system", "model", "scoring") and manifest["run"][section] != value
    ]
    for name, part in manifest["run"]["modalities"].items():
        now = run.description()["modalities"].get(name)
        if now != part:
            stranger.append(f"modality {name} was {part!r} and is {now!r}")
    if stranger:
        raise CheckpointError(f"warm_start={run.config.warm_start}: {'; '.join(stranger)}.")
    fresh = run.task.init(jax.random.key(run.config.training.seed), run.frozen)
    params, report = warm_start(old, fresh)
    run.console.print(f"Warm start from {run.config.warm_start}: {report}")
    return params


def _id_run(run: Run) -> Run:
    return Run(
        experiment.id_baseline(run.config),
        run.workdir / "baselines" / "sasrec",
        run.console,
        shared_data=run.data,
    )


def _popularity(run: Run) -> Outcome:
    from mmrec_jax.evaluation import PopularityScorer, evaluate

    data = run.data
    return Outcome(
        evaluate(
            PopularityScorer(data.popularity),
            data.examples("test"),
            data.popularity,
            length=run.config.model.length,
            config=run.config.evaluation,
        )
    )


def _report(run: Run, outcomes: dict[str, Outcome]) -> dict:
    """Prints the tables and writes them."""
    from mmrec_jax.evaluation import compare
    from mmrec_jax.evaluation.report import difference_table, markdown, slice_markdown, slice_table, table

    results = {name: outcome.result for name, outcome in outcomes.items()}
    config = run.config
    repeats = "count as misses" if config.evaluation.repeats_are_misses else "can be hit"
    title = (
        f"{config.name}: test split, {len(next(iter(results.values())).ranks)} users, {run.data.num_items} items, "
        f"full ranking, percent; items that the user already had {repeats}"
    )
    run.console.print(table(results, title=title))
    if config.evaluation.slices:
        run.console.print(slice_table(results))
    differences = {}
    if config.evaluation.bootstrap:
        first = results[config.name]
        for name, result in results.items():
            if name != config.name:
                differences[name] = compare(first, result)
                run.console.print(difference_table(differences[name], title=f"{config.name} minus {name}"))
    content = {
        "name": config.name,
        "models": {
            name: {"test": outcome.result.summary(), "training": outcome.training}
            for name, outcome in outcomes.items()
        },
    }
    (run.workdir / "results.json").write_text(json.dumps(content, indent=2))
    parts = [f"# {title}", markdown(results)] + (
        [slice_markdown(results)] if config.evaluation.slices else []
    )
    (run.workdir / "report.md").write_text("\n\n".join(parts) + "\n")
    return content


def show_users(run: Run, recommender, count: int) -> None:
    """Prints the last items and the top 10 of the first `count` users."""
    from rich.table import Table

    users = [str(user) for user in run.data.user_ids[:count]]
    k = min(10, run.data.num_items)
    listed = recommender.recommend(users=users, k=k)
    weights = [column for column in listed.columns if column.startswith("weight_")]
    for user in users:
        last = run.data.titles(run.data.history(user)[-5:])
        grid = Table(title=f"User {user}; last items: {'; '.join(last)}")
        for heading in ("", "title", "score", *(w.removeprefix("weight_") for w in weights)):
            grid.add_column(heading)
        for row in listed.filter(listed["query"] == user).iter_rows(named=True):
            shares = [f"{row[w]:.2f}" for w in weights]
            grid.add_row(str(row["rank"]), row["title"], f"{row['score']:.2f}", *shares)
        run.console.print(grid)
