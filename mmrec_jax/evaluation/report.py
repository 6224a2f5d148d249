"""Tables of evaluation results, for a terminal (rich) and for a document (Markdown)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from mmrec_jax.evaluation.evaluate import EvaluationResult
from mmrec_jax.evaluation.significance import Difference

SHOWN = ("HR", "NDCG", "MRR")


def table(results: Mapping[str, EvaluationResult], *, title: str = "", metrics: Sequence[str] = SHOWN) -> Table:
    """Metrics down, models across, in percent; a value's interval, if there is one, in brackets."""
    grid = Table(title=title or None)
    grid.add_column("metric")
    for model in results:
        grid.add_column(model, justify="right")
    for row in _metric_rows(results, metrics):
        grid.add_row(*row)
    return grid


def markdown(results: Mapping[str, EvaluationResult], *, metrics: Sequence[str] = SHOWN) -> str:
    """The same as a Markdown table."""
    return markdown_rows(["metric", *results], _metric_rows(results, metrics))


def slice_table(results: Mapping[str, EvaluationResult], metric: str | None = None) -> Table:
    """One metric (in percent) of every slice, models across. By default NDCG at the first cut-off."""
    metric = metric or _default_metric(results)
    grid = Table(title=f"{metric} by slice")
    for heading in ("by", "slice"):
        grid.add_column(heading)
    for heading in ("count", *results):
        grid.add_column(heading, justify="right")
    for row in _slice_rows(results, metric):
        grid.add_row(*row)
    return grid


def slice_markdown(results: Mapping[str, EvaluationResult], metric: str | None = None) -> str:
    """The same as a Markdown table."""
    rows = _slice_rows(results, metric or _default_metric(results))
    return markdown_rows(["by", "slice", "count", *results], rows)


def difference_table(found: Mapping[str, Difference], *, title: str = "", metrics: Sequence[str] = SHOWN) -> Table:
    """Paired differences in percentage points, with intervals and p-values."""
    grid = Table(title=title or None)
    for heading in ("metric", "difference", "interval", "p"):
        grid.add_column(heading, justify="left" if heading == "metric" else "right")
    for name, value in found.items():
        if name.split("@")[0] in metrics:
            span = f"{100 * value.low:+.2f} to {100 * value.high:+.2f}"
            grid.add_row(name, f"{100 * value.mean:+.2f}", span, f"{value.p_value:.3f}")
    return grid


def markdown_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are of numbers."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _metric_rows(results: Mapping[str, EvaluationResult], metrics: Sequence[str]) -> list[list[str]]:
    """By cut-off: everything @10 before everything @20."""
    ks = sorted({k for result in results.values() for k in result.config.ks})
    names = [f"{metric}@{k}" for k in ks for metric in metrics]
    return [[name, *(_cell(result, name) for result in results.values())] for name in names]


def _default_metric(results: Mapping[str, EvaluationResult]) -> str:
    return f"NDCG@{next(iter(results.values())).config.ks[0]}"


def _cell(result: EvaluationResult, name: str) -> str:
    if name not in result.metrics:
        return ""
    value = result.metrics[name]
    if name.startswith("Popularity@"):
        return f"{value:.1f}"
    if name not in result.intervals:
        return f"{100 * value:.2f}"
    span = result.intervals[name]
    return f"{100 * value:.2f} ({100 * span.low:.2f}-{100 * span.high:.2f})"


def _slice_rows(results: Mapping[str, EvaluationResult], metric: str) -> list[list[str]]:
    """One row a slice with examples in any result; empty where a result was not sliced so."""
    counts = {
        (title, name): group["count"]
        for result in results.values()
        for title, groups in result.slices.items()
        for name, group in groups.items()
        if group["count"]
    }
    rows = []
    for (title, name), count in counts.items():
        values = [result.slices.get(title, {}).get(name, {}).get(metric) for result in results.values()]
        cells = ["" if value is None else f"{100 * value:.2f}" for value in values]
        rows.append([title, name, f"{count:,}", *cells])
    return rows
