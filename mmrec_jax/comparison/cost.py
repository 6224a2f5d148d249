"""What a method costs, and TPME: one figure for time, parameters and memory beside the other methods compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

WEIGHTS = {"seconds_per_epoch": 0.45, "parameters": 0.10, "peak_memory_bytes": 0.45}


@dataclass(frozen=True)
class Cost:
    """Of a method, as means over its seeds.

    Attributes:
        seconds_per_epoch: median over a run's epochs, without evaluation, compilation and warm-up.
        seconds: of all epochs, with evaluation on the validation split and the compilation of its programs.
        epochs: that were trained.
        parameters: that are trained.
        peak_memory_bytes: median over a run's epochs, of the process that trained or of its accelerator.
    """

    seconds_per_epoch: float
    seconds: float
    epochs: float
    parameters: float
    peak_memory_bytes: float


def mean_cost(trainings: Sequence[Mapping[str, float]]) -> Cost:
    """The cost of a method, from the section `training` of the results of its runs."""
    names = Cost.__dataclass_fields__
    return Cost(**{name: float(np.mean([training[name] for training in trainings])) for name in names})


def tpme(costs: Sequence[Cost]) -> list[float]:
    """TPME of each of the methods (IISAN, section 1.0 (f) of the papers' notes): lower is better.

    Time of an epoch, trained parameters and peak memory are each scaled to 0..1 over the methods, and weighted 0.45,
    0.10 and 0.45. So the figures are of these methods only, and change when one joins or leaves. What is equal for all
    counts 0 (the paper does not say: PROPOSAL).
    """
    total = np.zeros(len(costs))
    for name, weight in WEIGHTS.items():
        total += weight * _scaled(np.array([getattr(cost, name) for cost in costs], np.float64))
    return total.tolist()


def _scaled(values: Float64[np.ndarray, " method"]) -> Float64[np.ndarray, " method"]:
    if not len(values) or values.max() == values.min():
        return np.zeros_like(values)
    return (values - values.min()) / (values.max() - values.min())
