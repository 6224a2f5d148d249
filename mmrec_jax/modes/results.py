"""What came out: models side by side on the test split, as tables, `results.json` and `report.md`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mmrec_jax.files import write_whole
from mmrec_jax.modes.run import Run
from mmrec_jax.training.processes import several, writes

if TYPE_CHECKING:
    from mmrec_jax.evaluation.evaluate import EvaluationResult
    from mmrec_jax.types import Params

RANKS = "ranks_test.parquet"
"""Ranks of the evaluation that belongs to `results.json`, which comparisons read."""


@dataclass(frozen=True)
class Outcome:
    """A model's evaluation, and how its training went."""

    result: EvaluationResult
    training: dict[str, Any] = field(default_factory=dict)


def tested(
    run: Run, params: Params, history: Sequence[Mapping], best_step: int, best_value: float, ranks: str
) -> Outcome:
    """The outcome of a trained run; writes each user's rank to the file `ranks` of the workdir."""
    from mmrec_jax import slots

    result = run.test(params)
    if writes():
        result.write_ranks(run.workdir / ranks, run.data.user_ids, run.data.item_ids)
    # A program that was compiled within an epoch is no part of what an epoch takes.
    epochs = [entry["seconds"] for entry in history if not entry["recompilations"]]
    training = {
        "parameters": trained_parameters(params, run.config.training.groups),
        "total_parameters": slots.counts(params)[1],
        "best_step": best_step,
        "best_validation": {run.config.training.monitor: best_value},
        "epochs": len(history),
        "seconds_per_epoch": statistics.median(epochs or [entry["seconds"] for entry in history] or [0.0]),
        "seconds": sum(entry["seconds"] + entry.get("valid_seconds", 0.0) for entry in history),
        # The first epoch of a process compiles the evaluation.
        "peak_memory_bytes": statistics.median_low([entry["peak_memory_bytes"] for entry in history] or [0]),
    }
    return Outcome(result, training)


def trained_parameters(params: Params, groups: Sequence[tuple[str, float]]) -> int:
    """How many values training changes: none that `model.standardise` measures, none of groups whose rate is 0, none of
    experts that are frozen."""
    from mmrec_jax import slots
    from mmrec_jax.training.optimizers import parameter_groups

    fixed = {pattern for pattern, rate in groups if not rate}
    group = parameter_groups(params, groups)
    return sum(trained for name, (trained, _) in slots.sizes(params).items() if group[name] not in fixed)


def popularity(run: Run) -> Outcome:
    """The outcome of ranking by popularity."""
    from mmrec_jax.evaluation import PopularityScorer

    return Outcome(run.evaluated(PopularityScorer(run.data.popularity)))


def report(run: Run, outcomes: Mapping[str, Outcome], name: str) -> dict[str, Any]:
    """Prints the tables, and writes them to `<name>.json` and `report.md`.

    Args:
        run: the run that the others are compared with.
        outcomes: model -> outcome, the run's own first.
        name: of the JSON file.

    Returns:
        The content of the JSON file.
    """
    from mmrec_jax.evaluation import compare
    from mmrec_jax.evaluation.report import difference_table, markdown, slice_markdown, slice_table, table

    results = {model: outcome.result for model, outcome in outcomes.items()}
    (first, own), *others = results.items()
    repeats = "is a miss" if run.config.evaluation.repeats_are_misses else "can be hit"
    protocol = (
        f"{len(own.ranks)} users, {own.num_items} items, full ranking, percent; a held-out item that the user "
        f"already had {repeats} ({own.repeats} of them)"
    )
    run.console.print(table(results, title=f"{first}: test split"))
    run.console.print(protocol)
    if run.config.evaluation.slices:
        run.console.print(slice_table(results))
    differences = {}
    if run.config.evaluation.bootstrap:
        differences = {model: compare(own, result) for model, result in others}
    for model, difference in differences.items():
        run.console.print(difference_table(difference, title=f"{first} minus {model}"))
    content = {
        "name": run.config.name,
        "data": run.data.fingerprint,
        "models": {model: {"test": o.result.summary(), "training": o.training} for model, o in outcomes.items()},
        "differences": {
            f"{first} minus {model}": {metric: asdict(value) for metric, value in difference.items()}
            for model, difference in differences.items()
        },
    }
    if not writes():
        return content
    write_whole(run.workdir / f"{name}.json", json.dumps(content, indent=2))
    parts = [f"# {first}: test split", f"{protocol}.", markdown(results)]
    parts += [slice_markdown(results)] if run.config.evaluation.slices else []
    (run.workdir / "report.md").write_text("\n\n".join(parts), encoding="utf-8")
    return content


def show_users(run: Run, count: int) -> None:
    """Prints the last items and the top 10 of the first `count` users; where several processes have the catalogue
    between them, only how to get them."""
    from rich.table import Table

    from mmrec_jax.serving.recommender import Recommender

    if several():
        run.console.print("\nWhat it recommends is told by one process: --mode=recommend --users=ID,ID,...")
        return
    users = [str(user) for user in run.data.user_ids[:count]]
    listed = Recommender.of_run(run).recommend(users=users, k=min(10, run.data.num_items))
    weights = [column for column in listed.columns if column.startswith("weight_")]
    room = max(20, run.console.width - 20 - sum(len(weight) - 4 for weight in weights))  # beside the other columns
    for user in users:
        run.console.print(f"\nUser {user}, last items:")
        for title in run.data.titles(run.data.history(user)[-5:]):
            run.console.print(f"  {shortened(title, room)}")
        grid = Table()
        grid.add_column("", justify="right")
        grid.add_column("recommended")
        for heading in ("score", *(weight.removeprefix("weight_") for weight in weights)):
            grid.add_column(heading, justify="right")
        for row in listed.filter(listed["query"] == user).iter_rows(named=True):
            shares = [f"{row[weight]:.2f}" for weight in weights]
            grid.add_row(str(row["rank"]), shortened(row["title"], room), f"{row['score']:.2f}", *shares)
        run.console.print(grid)


def shortened(text: str, length: int) -> str:
    """Text of at most `length` characters on one line, with an ellipsis where something was cut."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"
