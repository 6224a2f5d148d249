"""Accuracy against cost, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmrec_jax.comparison.outcomes import Outcome

_AXES = (
    ("seconds_per_epoch", 1.0, "seconds an epoch"),
    ("parameters", 1.0, "trained parameters"),
    ("peak_memory_bytes", 2.0**20, "peak memory, MiB"),
)
_WIDE = 20  # ratio of costs from which their axis is logarithmic


def plot(path: Path, rows: Sequence[Outcome], metric: str) -> None:
    """Draws a metric with its interval against each of the costs into a PNG; the stages of a method are joined."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    methods = list(dict.fromkeys(row.variant.method for row in rows))
    first = None
    for number, (name, unit, label) in enumerate(_AXES, 1):
        first = axes = figure.add_subplot(1, len(_AXES), number, xlabel=label, sharey=first)
        values = [getattr(row.cost, name) / unit for row in rows]
        if max(values) > _WIDE * min(values) > 0:
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, 1.15 * max(values) or 1)
        axes.grid(alpha=0.3)
        for method in methods:
            own = [row for row in rows if row.variant.method == method]
            costs = [getattr(row.cost, name) / unit for row in own]
            means = [row.metrics[metric] for row in own]
            # A mean can lie outside: of equal ranks by rounding, and of a narrow interval by the skew of its draws.
            below = [100 * max(m.mean - m.low, 0) for m in means]
            above = [100 * max(m.high - m.mean, 0) for m in means]
            heights = [100 * m.mean for m in means]
            axes.errorbar(costs, heights, [below, above], fmt="o-", capsize=3, label=method if number == 1 else None)
            for stage, cost, height in zip(own, costs, heights, strict=True):
                if stage.variant.stage:
                    axes.annotate(str(stage.variant.stage), (cost, height), textcoords="offset points", xytext=(5, 5))
    if first is not None:
        figure.axes[0].set_ylabel(f"test {metric}, percent")
        figure.legend(loc="outside upper center", ncols=min(len(methods), 6))
    figure.savefig(path, dpi=120)
