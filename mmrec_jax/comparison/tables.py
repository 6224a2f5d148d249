"""A comparison's tables, for a terminal, for a document and for other programs."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from mmrec_jax.comparison.config import Comparison
from mmrec_jax.comparison.jobs import Failure
from mmrec_jax.comparison.outcomes import Outcome
from mmrec_jax.evaluation.pairing import HeldOut
from mmrec_jax.evaluation.report import markdown_rows

METRICS = ("HR", "NDCG")
COSTS = ("s an epoch", "training s", "epochs", "parameters", "peak MiB", "TPME %")


def headings(comparison: Comparison) -> tuple[list[str], list[str]]:
    """Of the table of accuracy, and of that of costs."""
    first = "stage" if comparison.plan == "staged" else "method"
    shown = [f"{metric}@{comparison.ks[0]}" for metric in METRICS]
    than = comparison.baseline or next(iter(comparison.runs))
    if comparison.plan == "staged":
        than = f"{comparison.baseline}, same stage" if comparison.baseline else "the stage before"
    return [first, "seeds", *shown, *(f"{metric} to {than}" for metric in shown), "p"], [first, *COSTS]


def accuracy_rows(comparison: Comparison, rows: Sequence[Outcome]) -> list[list[str]]:
    """Means with intervals in percent, differences in points, and p of the last metric's difference.

    A star marks differences whose adjusted p-value is below what the confidence leaves.
    """
    shown = [f"{metric}@{comparison.ks[0]}" for metric in METRICS]
    found = []
    for row in rows:
        means = [_span(row.metrics[name].mean, row.metrics[name].low, row.metrics[name].high) for name in shown]
        found.append([row.variant.name, str(len(row.seeds)), *means, *_differences(comparison, row, shown)])
    return found


def cost_rows(rows: Sequence[Outcome]) -> list[list[str]]:
    """Cells of the costs, as `COSTS` names them."""
    return [
        [
            row.variant.name,
            f"{row.cost.seconds_per_epoch:.2f}",
            f"{row.cost.seconds:.1f}",
            f"{row.cost.epochs:g}",
            f"{row.cost.parameters:,.0f}",
            f"{row.cost.peak_memory_bytes / 2**20:,.0f}",
            f"{100 * row.tpme:.1f}",
        ]
        for row in rows
    ]


def tables(comparison: Comparison, rows: Sequence[Outcome]) -> list[Table]:
    """Both tables for a terminal."""
    found = []
    for title, names, cells in zip(
        ("test split, percent", "cost"), headings(comparison), (accuracy_rows(comparison, rows), cost_rows(rows)),
        strict=True,
    ):  # fmt: skip
        grid = Table(title=f"{comparison.name}: {title}")
        for number, name in enumerate(names):
            grid.add_column(name, justify="right" if number else "left")
        for row in cells:
            grid.add_row(*row)
        found.append(grid)
    return found


def notes(comparison: Comparison, held: HeldOut) -> list[str]:
    """What a reader of the tables must know."""
    percent = f"{100 * comparison.confidence:g}%"
    seeds = len(comparison.seeds)
    lines = [
        f"{len(held.users):,} users, {len(held.candidates):,} items, full ranking, percent; in brackets {percent} over "
        f"users{' and seeds' if seeds > 1 else '; one seed, so the noise of training is not in them, nor in p'}.",
        "Differences are paired over users, in points. p is of the last difference, two-sided, adjusted for the "
        f"number of rows (Holm), each metric for itself; * marks differences where it is below "
        f"{1 - comparison.confidence:.2g}.",
        "s an epoch: median, without evaluation, compilation and warm-up. training s: all epochs with their "
        "evaluations, whose programs the first run of a kind compiles and the others mostly find in the cache. peak "
        "MiB: in an epoch with its evaluation, median, of the whole process or of its accelerator. Extraction of "
        "hidden states is in none of the costs.",
        "TPME = 0.45 time of an epoch + 0.10 parameters + 0.45 memory, each scaled to 0..1 over the rows; lower is "
        "better.",
    ]
    if comparison.plan == "staged":
        lines.append("A stage begins with the parameters of the stage before, unless its method says otherwise.")
        if comparison.baseline:
            lines.append(f"Each is compared with the stage of the same number of {comparison.baseline}.")
    if comparison.jobs > 1:
        lines.append(f"{comparison.jobs} runs went on at a time: their times are not those of a machine of their own.")
    return lines


def document(comparison: Comparison, rows: Sequence[Outcome], held: HeldOut, failed: Mapping[str, Failure]) -> str:
    """The Markdown page."""
    accuracy, cost = headings(comparison)
    parts = [f"# {comparison.name}", " ".join(notes(comparison, held))]
    if rows:
        parts += [markdown_rows(accuracy, accuracy_rows(comparison, rows)), markdown_rows(cost, cost_rows(rows))]
    if failed:
        lines = [
            f"- {title}: {_one_line(failure.error)} ({failure.log or 'no log'})" for title, failure in failed.items()
        ]
        parts.append("## Failed\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def content(comparison: Comparison, rows: Sequence[Outcome], held: HeldOut, failed: Mapping[str, Failure]) -> dict:
    """Everything that is known, JSON-able."""
    return {
        "comparison": asdict(comparison),
        "users": len(held.users),
        "items": len(held.candidates),
        "cpus": os.cpu_count(),
        "rows": [_row(row) for row in rows],
        "failed": {title: {"error": failure.error, "log": str(failure.log or "")} for title, failure in failed.items()},
    }


def as_csv(comparison: Comparison, rows: Sequence[Outcome]) -> str:
    """One record a row; metrics as fractions of 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = [f"{metric}@{k}" for metric in (*METRICS, "MRR") for k in comparison.ks]
    parts = [f"{name}{end}" for name in metrics for end in ("", "_low", "_high", "_difference", "_p_adjusted")]
    costs = ("seconds_per_epoch", "seconds", "epochs", "parameters", "peak_memory_bytes")
    writer.writerow(["name", "method", "stage", "modalities", "reference", "seeds", *parts, *costs, "tpme"])
    for row in rows:
        variant = row.variant
        cells: list[Any] = []
        for name in metrics:
            mean, difference = row.metrics[name], row.differences.get(name)
            cells += [mean.mean, mean.low, mean.high, difference.mean if difference else "", row.holm.get(name, "")]
        named = [variant.name, variant.method, variant.stage or "", "+".join(variant.config.modalities)]
        seeds = " ".join(map(str, row.seeds))
        own = [getattr(row.cost, name) for name in costs]
        writer.writerow([*named, variant.reference, seeds, *cells, *own, row.tpme])
    return text.getvalue()


def _row(row: Outcome) -> dict[str, Any]:
    variant = row.variant
    return {
        "name": variant.name,
        "method": variant.method,
        "stage": variant.stage or None,
        "modalities": list(variant.config.modalities),
        "system": variant.config.model.system,
        "warm_start": variant.warm,
        "seeds": list(row.seeds),
        "metrics": {name: asdict(mean) for name, mean in row.metrics.items()},
        "reference": variant.reference or None,
        "differences": {
            name: asdict(value) | {"p_adjusted": row.holm[name]} for name, value in row.differences.items()
        },
        "cost": asdict(row.cost),
        "tpme": row.tpme,
        "trainings": {str(seed): training for seed, training in row.trainings.items()},
    }


def _differences(comparison: Comparison, row: Outcome, shown: Sequence[str]) -> list[str]:
    if not row.differences:
        return ["" for _ in shown] + [""]
    cells = []
    for name in shown:
        value = row.differences[name]
        star = "*" if row.holm[name] < 1 - comparison.confidence else ""
        cells.append(f"{100 * value.mean:+.2f}{star} ({100 * value.low:+.2f} to {100 * value.high:+.2f})")
    return [*cells, f"{row.holm[shown[-1]]:.3f}"]


def _span(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.2f} ({100 * low:.2f}-{100 * high:.2f})"


def _one_line(text: str) -> str:
    return " ".join(text.split())
