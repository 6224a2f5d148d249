"""The streaming part of a run's config."""

from __future__ import annotations

from dataclasses import dataclass

from mmrec_jax.errors import ConfigError

LEARNERS = ("carry", "retrain_all", "retrain_window", "frozen", "replay")

_CHOICES = {
    "cut": ("count", "time"),
    "validation": ("slice", "user"),
    "valid_candidates": ("slice", "seen"),
    "context": ("window", "all"),
    "targets": ("last", "all"),
    "valid_targets": ("last", "all"),
    "learner": LEARNERS,
    "at_capacity": ("prune", "grow", "stop"),
    "utilisation": ("train", "paper"),
}


@dataclass(frozen=True)
class StreamConfig:
    """How a log is cut into windows, what is learned from each, and how it is tested (papers.md section 4).

    The defaults are those of XSMoE's public code.

    Attributes:
        windows: number of windows that a log is cut into.
        cut: windows of an equal `count` of events, or of equal `time`. Events of the same moment stay together.
        user_core, item_core: iterative k-core inside each window: least events a user and an item must have there; 0 or
            1 = off. (The paper: 10 or 5 events a user.)
        valid_fraction: share of a window's events that validates instead of training.
        validation: which events those are: the last `slice` of the window in time, or the last ones of each `user`
            (PROPOSAL: where users come in bursts, a slice in time holds very few of them).
        valid_candidates: what validation ranks: items that occur in the `slice` itself, as the paper's code does, or
            all items `seen` so far, as the test does.
        context: what a history holds: the user's events of the same `window`, or `all` of that user's events so far
            (PROPOSAL). Targets are the window's events in both.
        min_events: events that a user needs in a window to be tested on it.
        targets: what is predicted of a tested window: the `last` event of each user, or `all` but the first of those
            that have nothing before them (PROPOSAL: many more examples in windows of few users).
        valid_targets: the same of validation.
        train_last: also train on the last window of a log, which nothing follows that could test it.
        learner: what is trained on a window: `carry` goes on with the parameters of the window before, `replay` does so
            on a share of older events too, `retrain_window` and `retrain_all` begin anew on this window or on all so
            far, `frozen` keeps the parameters of the first window.
        replay: of `replay`: rows of older windows, as a share of the window's own.
        expand: add an expert to each rung after a window was tested, and freeze the older ones.
        prune: before that, take the least used expert of a rung away where it is used less than `threshold`.
        threshold: share of a rung's utilisation (the paper's tau).
        at_capacity: what a rung does that has no free slot: `prune` its least used expert however much it is used,
            `grow` all arrays once (which compiles anew), or `stop` growing.
        utilisation: measured on the `train` batches of the best epoch, or as the `paper`'s code does, over all items of
            the evaluations as well.
        forgetting: how many earlier windows' validation parts are evaluated again after each window; 0 = none.
        item_capacity: rows of the table of items that are made room for; 0 = as many as a log has. Beyond it the table
            is doubled, which compiles anew.
    """

    windows: int = 10
    cut: str = "count"
    user_core: int = 5
    item_core: int = 0
    valid_fraction: float = 0.15
    validation: str = "slice"
    valid_candidates: str = "slice"
    context: str = "window"
    min_events: int = 2
    targets: str = "last"
    valid_targets: str = "last"
    train_last: bool = False
    learner: str = "carry"
    replay: float = 0.2
    expand: bool = True
    prune: bool = True
    threshold: float = 0.1
    at_capacity: str = "prune"
    utilisation: str = "train"
    forgetting: int = 10
    item_capacity: int = 0

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(f"stream.{key}={getattr(self, key)!r}: choose one of {', '.join(allowed)}.")
        for key, least in (("windows", 2), ("user_core", 0), ("item_core", 0), ("forgetting", 0), ("item_capacity", 0)):
            if getattr(self, key) < least:
                raise ConfigError(f"stream.{key}={getattr(self, key)}: must be at least {least}.")
        if self.min_events < 2:
            raise ConfigError(
                f"stream.min_events={self.min_events}: a tested user needs 2 events, one to go by and one to predict."
            )
        if not 0 < self.valid_fraction < 1:
            raise ConfigError(f"stream.valid_fraction={self.valid_fraction}: must lie between 0 and 1.")
        if not 0 < self.replay <= 10:
            raise ConfigError(f"stream.replay={self.replay}: a share above 0 and at most 10.")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"stream.threshold={self.threshold}: must lie in [0, 1].")
