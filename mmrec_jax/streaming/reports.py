"""What a stream came to: a table, `stream.json`, `stream.csv`, quality over time and the lives of experts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table

Reports = Sequence[Mapping[str, Any]]
"""One entry a trained window, as `protocol.StreamRun` leaves them."""


def summary(reports: Reports, metric: str) -> dict[str, Any]:
    """Means over the tested windows, each window counting the same (papers.md 4 f), and what the stream took.

    Returns:
        `metrics` (mean over windows), `windows` (how many were tested), `forgetting` (see there), `seconds`,
        `recompilations` (after the first window), `peak_memory_bytes`, and `time_ratio` (see there; None where
        fewer than two windows were trained).
    """
    tested = [report["test"]["metrics"] for report in reports if report.get("test", {}).get("examples")]
    by_user = [report["test"]["by_user"] for report in reports if report.get("test", {}).get("by_user")]
    return {
        "windows": len(tested),
        "metrics": _means(tested),
        **({"by_user": _means(by_user)} if by_user else {}),
        "forgetting": forgetting(reports, metric),
        "seconds": sum(sum(report.get("seconds", {}).values()) for report in reports),
        "training_seconds": sum(report["training"]["seconds"] for report in reports),
        "recompilations": sum(report.get("recompilations", 0) for report in reports[1:]),
        "peak_memory_bytes": max((r["training"].get("peak_memory_bytes", 0) for r in reports), default=0),
        "time_ratio": time_ratio(reports),
    }


def forgetting(reports: Reports, metric: str) -> dict[str, float]:
    """What the model that was tested last has lost on the held-out parts of windows since it was trained on them.

    A part is ranked among the items that were known at its window's end, so that a model that is not trained any more
    loses nothing. It chose the epoch of its own window's training, so that the value after that is a little high.

    Returns:
        Window -> the metric right after the window's own training minus the metric under the last model, and `mean` of
        them; {} where there is none. The last window's own part is not among them, nor are windows of which items were
        forgotten since, and such whose training a roll-back has undone.
    """
    tested = [report for report in reports if _own_held_out(report)]
    return _forgotten({report["window"]: report for report in reports}, tested[-1], metric) if tested else {}


def _own_held_out(report: Mapping[str, Any]) -> Mapping[str, Mapping[str, float]]:
    """What was measured on held-out parts of the model that the report's training gave; {} after a roll-back, as
    another was measured."""
    return {} if "rolled_back" in report else report.get("held_out", {})


def _forgotten(reports: Mapping[int, Mapping[str, Any]], last: Mapping[str, Any], metric: str) -> dict[str, float]:
    """The forgetting of the model of one report; the reports by window."""
    held, found = _own_held_out(last), {}
    if not held:
        return {}
    for window in reversed([*_trained_on(reports, last["window"], min(map(int, held)))]):
        now, then = held.get(str(window)), _own_held_out(reports[window]).get(str(window))
        if now and then and now.get("items") == then.get("items", -1):
            found[str(window)] = then[metric] - now[metric]
    return {**found, "mean": float(np.mean(list(found.values())))} if found else {}


def _trained_on(reports: Mapping[int, Mapping[str, Any]], window: int, oldest: int) -> Iterator[int]:
    """The windows that the parameters of a window's training went through before, newest first, down to one."""
    while (before := reports.get(window - 1)) is not None:
        window = before["rolled_back_to"]["version"] if "rolled_back_to" in before else window - 1
        if window < oldest or window not in reports:
            return
        yield window


def time_ratio(reports: Reports) -> float | None:
    """Seconds of steps for a target, last window over first; evaluation and compilation are in neither."""
    each = [
        report["training"]["step_seconds"] / (report["training"]["targets"] * report["training"]["epochs"])
        for report in reports
        if report["training"].get("epochs")
    ]
    return each[-1] / each[0] if len(each) > 1 else None


def as_csv(reports: Reports, metric: str) -> str:
    """A record a trained window; metrics and shares as fractions of 1, empty where there is none.

    Args:
        reports: of the windows.
        metric: of which forgetting is told.
    """
    names = list(dict.fromkeys(name for r in reports for name in r.get("test", {}).get("metrics", {})))
    phases = list(dict.fromkeys(phase for report in reports for phase in report.get("seconds", {})))
    by_window = {report["window"]: report for report in reports}
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(names, phases, metric), restval="", lineterminator="\n")
    writer.writeheader()
    for report in reports:
        test, held = report.get("test", {}), report.get("held_out", {})
        writer.writerow(
            {key: report[key] for key in _PLAIN}
            | {key: report["training"][key] for key in _TRAINING if key in report["training"]}
            | {f"seconds {phase}": seconds for phase, seconds in report.get("seconds", {}).items()}
            | report["parameters"]
            | {
                "experts": " ".join(f"{rung}:{len(experts)}" for rung, experts in report["experts"].items()),
                "utilisation": " ".join(f"{rung}:{_shares(experts)}" for rung, experts in report["experts"].items()),
                "pruned": len(report["pruned"]),
                "born": len(report["born"]),
                "recompilations": report.get("recompilations", 0),
                "tested_on": test.get("window", ""),
                "examples": test.get("examples", ""),
            }
            | test.get("metrics", {})
            | {f"held-out {name}": float(np.mean([part[name] for part in held.values()])) for name in names if held}
            | {f"forgetting {metric}": _forgotten(by_window, report, metric).get("mean", "")}
        )
    return text.getvalue()


_PLAIN = ("window", "events", "items", "new_items", "users")
_TRAINING = ("epochs", "best_epoch", "seconds", "peak_memory_bytes")


def _columns(names: Sequence[str], phases: Sequence[str], metric: str) -> list[str]:
    parameters = ("trainable", "total", "experts", "utilisation", "pruned", "born", "recompilations")
    held = (f"held-out {name}" for name in names)
    seconds = (f"seconds {phase}" for phase in phases)
    tested = ("tested_on", "examples", *names, *held, f"forgetting {metric}")
    return [*_PLAIN, *_TRAINING, *seconds, *parameters, *tested]


def _shares(experts: Iterable[Mapping[str, Any]]) -> str:
    """Of the utilisation, slot after slot."""
    return "/".join("" if expert["utilisation"] is None else f"{expert['utilisation']:.3f}" for expert in experts)


def table(reports: Reports, title: str) -> Table:
    """The windows side by side: new items, seconds of training, experts of all rungs and how many were then pruned and
    added, metrics on the next window in percent, and their means."""
    from rich import box
    from rich.table import Table

    names = list(dict.fromkeys(name for r in reports for name in r.get("test", {}).get("metrics", {})))[:4]
    names = sorted(names, key=lambda name: (not name.startswith("HR"), int(name.partition("@")[2])))
    # Nine columns must fit into a terminal of 80.
    grid = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    columns = ["window", "new", "s", "experts", "-/+", *names]
    for column in columns:
        grid.add_column(column, justify="right")
    for report in reports:
        test = report.get("test", {})
        experts = [len(held) for held in report["experts"].values()]
        grid.add_row(
            str(report["window"]),
            f"{report['new_items']:,}",
            f"{report['training']['seconds']:.1f}",
            str(sum(experts)) if experts else "",
            f"{len(report['pruned'])}/{len(report['born'])}",
            *(f"{100 * test['metrics'][name]:.2f}" if test.get("examples") else "" for name in names),
        )
    means = _means([report["test"]["metrics"] for report in reports if report.get("test", {}).get("examples")])
    if means:
        grid.add_section()
        grid.add_row("mean", *[""] * (len(columns) - len(names) - 1), *(f"{100 * means[name]:.2f}" for name in names))
    return grid


def plot_quality(reports: Reports, path: Path, metrics: Iterable[str]) -> None:
    """Metrics of each tested window, and on the held-out parts of all windows so far, into a PNG."""
    figure, save = _figure(8, 4)
    axes = figure.add_subplot(xlabel="window that was tested", ylabel="percent")
    tested = [report for report in reports if report.get("test", {}).get("examples")]
    for number, name in enumerate(metrics):
        shown = [report for report in tested if name in report["test"]["metrics"]]
        windows = [report["test"]["window"] for report in shown]
        axes.plot(
            windows, [100 * r["test"]["metrics"][name] for r in shown], f"C{number}o-", label=f"{name}, next window"
        )
        kept = [r for r in shown if r.get("held_out")]
        axes.plot(
            [report["test"]["window"] for report in kept],
            [100 * np.mean([part[name] for part in report["held_out"].values()]) for report in kept],
            f"C{number}.:",
            label=f"{name}, held-out parts of the windows so far",
        )
    axes.grid(alpha=0.3)
    axes.legend()
    save(path)


def plot_experts(reports: Reports, path: Path) -> None:
    """Birth and death of every expert of every rung into a PNG: a line from its first to its last window, its width and
    darkness its share of the rung's utilisation."""
    rungs = list(dict.fromkeys(rung for report in reports for rung in report["experts"]))
    if not rungs:
        return
    figure, save = _figure(8, 1 + 1.6 * len(rungs))
    first = None
    for place, rung in enumerate(rungs, 1):
        first = axes = figure.add_subplot(len(rungs), 1, place, sharex=first, ylabel=rung)
        lines: dict[tuple[int, int], int] = {}
        for report in reports:
            for expert in report["experts"].get(rung, ()):
                line = lines.setdefault((expert["born"], expert["slot"]), len(lines))
                share = 0.5 if expert["utilisation"] is None else expert["utilisation"]
                colour = "C1" if expert["trainable"] else "C0"
                axes.plot(
                    [report["window"] - 0.5, report["window"] + 0.5],
                    [line, line],
                    colour,
                    linewidth=2 + 8 * share,
                    alpha=0.25 + 0.75 * share,
                    solid_capstyle="butt",
                )
            for expert in pruned(report, rung):
                if (key := (expert["born"], expert["slot"])) in lines:
                    axes.plot(report["window"] + 0.5, lines[key], "kx")
        axes.set_yticks(range(len(lines)), [f"from {born}" for born, _ in lines])
    figure.axes[-1].set_xlabel("window trained on (orange: trained, blue: frozen, x: pruned)")
    save(path)


def pruned(report: Mapping[str, Any], rung: str) -> list[Mapping[str, Any]]:
    """The experts of a rung that were taken away after a window: of its training, or of the version that was rolled
    back to."""
    slots = {each["slot"] for each in report["pruned"] if each["rung"] == rung}
    experts = report.get("rolled_back_to", report)["experts"]
    return [expert for expert in experts.get(rung, ()) if expert["slot"] in slots]


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, lambda path: figure.savefig(path, dpi=120)


def _means(entries: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([entry[name] for entry in entries])) for name in (entries[0] if entries else ())}
