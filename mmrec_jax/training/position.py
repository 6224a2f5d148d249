"""How far a training is, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmrec_jax.types import Params


@dataclass(frozen=True)
class FitResult:
    """What a run leaves.

    Attributes:
        params: the best parameters (their moving average where one is kept), numpy, read back from the
            checkpoint.
        best_step, best_value: when the monitored metric was best, and what it was.
        history: one entry an epoch: `epoch`, `step`, `seconds` (of training, without evaluation),
            `peak_memory_bytes` (of the process in this epoch, or of the first accelerator), `recompilations`, `train`
            (means over the epoch), `measured` (means of metrics that are arrays, as lists) and, where the epoch was
            evaluated, `valid` and `valid_seconds`.
        step: steps taken.
        stopped_early: whether patience ran out before the last epoch.
    """

    params: Params
    best_step: int
    best_value: float
    history: list[dict]
    step: int
    stopped_early: bool


@dataclass
class Position:
    """How far a run is, beside its arrays: plain values, saved in the manifest of each checkpoint."""

    seed: int
    batches_per_epoch: int
    step: int = 0
    stream: dict | None = None
    best_value: float | None = None
    best_step: int | None = None
    stale: int = 0  # evaluations since the best one
    epoch_sums: dict[str, float | list[float]] = field(default_factory=dict)
    epoch_steps: int = 0
    epoch_seconds: float = 0.0
    history: list[dict] = field(default_factory=list)
