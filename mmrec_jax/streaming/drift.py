"""Alarms when a figure of the newest window leaves the range that it had in the windows before.

PROPOSAL. The range is the median of the last windows plus and minus `limit` robust standard deviations (1.4826 times
the median absolute deviation), which neither a single odd window nor an earlier alarm widens. Figures are named
`kind/what`; the kind says which side is alarming and how small a spread is taken for none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mmrec_jax.files import write_whole

FILE = "alarms.json"
_NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
_KEPT = 1000  # alarms that the file keeps


@dataclass(frozen=True)
class Kind:
    """How figures of a kind are judged.

    Attributes:
        low, high: whether a value below or above the range is alarming.
        relative, absolute: the smallest standard deviation that is believed, as a share of the median and in the
            figure's own unit; the larger of the two counts.
    """

    low: bool
    high: bool
    relative: float = 0.0
    absolute: float = 0.0


KINDS = {
    "quality": Kind(low=True, high=False, relative=0.05, absolute=1e-6),
    "load": Kind(low=True, high=False, absolute=0.02),
    "missing": Kind(low=True, high=True, absolute=0.01),
}
"""quality: a metric of the test on the window. load: `evenness` of a layer's experts. missing: share of a window's
items that lack a modality."""


@dataclass(frozen=True)
class Alarm:
    """A figure outside its usual range.

    Attributes:
        window: its number.
        figure: `kind/what`.
        value: in that window.
        low, high: the usual range.
        deviations: how many robust standard deviations the value lies from the median.
        windows: how many windows the range is of.
    """

    window: int
    figure: str
    value: float
    low: float
    high: float
    deviations: float
    windows: int

    def __str__(self) -> str:
        side = "below" if self.value < self.low else "above"
        return (
            f"ALARM: window {self.window}: {self.figure} is {self.value:.4f}, {side} its range of the last "
            f"{self.windows} windows, {self.low:.4f} to {self.high:.4f} ({self.deviations:+.1f} deviations)."
        )


def alarms(
    window: int,
    figures: Mapping[str, float],
    before: Sequence[Mapping[str, float]],
    *,
    windows: int = 20,
    least: int = 5,
    limit: float = 4.0,
) -> list[Alarm]:
    """What left its usual range.

    Args:
        window: number of the newest window.
        figures: its figures; values that are not finite are passed over.
        before: figures of the windows before, oldest first.
        windows: how many of them make up the range.
        least: windows with the figure that a range needs; with fewer there is no alarm.
        limit: half width of the range in robust standard deviations.
    """
    found = []
    for name, value in figures.items():
        kind = KINDS[name.partition("/")[0]]
        past = [each[name] for each in before[-windows:] if math.isfinite(each.get(name, math.nan))]
        if len(past) < least or not math.isfinite(value):
            continue
        median = float(np.median(past))
        spread = _NORMAL * float(np.median(np.abs(np.asarray(past) - median)))
        spread = max(spread, kind.relative * abs(median), kind.absolute)
        low, high = median - limit * spread, median + limit * spread
        if (kind.low and value < low) or (kind.high and value > high):
            found.append(Alarm(window, name, float(value), low, high, (value - median) / spread, len(past)))
    return found


def evenness(utilisation: Float[np.ndarray, " expert"]) -> float:
    """How evenly the active experts of a layer are used: the exponential of the entropy of their shares, over their
    number; 1 where all are used alike, and for one expert alone.

    Args:
        utilisation: share of each active expert; they need not sum to 1. Nothing used at all gives NaN.
    """
    total = utilisation.sum()
    if not total > 0:
        return math.nan
    shares = utilisation[utilisation > 0] / total
    return float(np.exp(-np.sum(shares * np.log(shares))) / len(utilisation))


def note(path: Path, found: Sequence[Alarm]) -> None:
    """Adds alarms to a file; those of the same window and figure are replaced, so that a window that is gone through
    again after a kill is not told twice."""
    if not found:
        return
    known = read(path)
    fresh = {(alarm.window, alarm.figure): asdict(alarm) for alarm in found}
    kept = [alarm for alarm in known if (alarm["window"], alarm["figure"]) not in fresh]
    write_whole(path, json.dumps([*kept, *fresh.values()][-_KEPT:], indent=1))


def read(path: Path) -> list[dict]:
    """The alarms of a file; none where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
