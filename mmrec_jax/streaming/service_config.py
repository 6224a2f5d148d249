"""The part of a run's config about a model that is kept alive by `--mode=stream --watch=DIR`."""

from __future__ import annotations

from dataclasses import dataclass

from mmrec_jax.errors import ConfigError

PROMOTIONS = ("unless_worse", "better", "always")
_AT_LEAST = {
    "poll_seconds": 0.01,
    "settle_seconds": 0,
    "patience_seconds": 0,
    "idle_seconds": 0,
    "keep_versions": 0,
    "forget_after": 0,
    "history": 0,
    "drift_windows": 2,
    "drift_least": 2,
}


@dataclass(frozen=True)
class ServiceConfig:
    """How windows are taken in, when a model is put in service, what is kept, and what raises an alarm.

    Attributes:
        on_bad_window: a window that cannot be used as it is: `stop` with an error, or `skip` it (or those of its events
            that cannot be used), say so and go on.
        poll_seconds: between two looks at the directory.
        settle_seconds: how long a file must have stayed as it is before it is read.
        patience_seconds: after how long without change a file that looks half-written is a bad window.
        idle_seconds: end after so long without a window; 0 waits for ever.
        promote: a candidate takes the place of the model in service `unless_worse` (unless the interval of the paired
            difference lies below 0), only if `better` (it lies above 0), or `always`. The metric is
            `training.monitor`; resamples, confidence and seed are those of `evaluation`.
        keep_versions: how many of the newest versions to keep, beside the one in service and the one before it; 0 = all
            of them.
        forget_after: users and items without an event in so many windows are forgotten; 0 = never.
        compact_at: the store is written anew without forgotten items once they are more than this share of it; 1 =
            never. It needs room for both while it is written. A store that the config names is never changed so.
        history: how many of each user's last events are kept for recommending; 0 = all.
        drift_windows, drift_least: how many of the last windows make up the usual range of a figure, and how many it
            takes at least.
        drift_limit: half width of the range in robust standard deviations.
    """

    on_bad_window: str = "stop"
    poll_seconds: float = 2.0
    settle_seconds: float = 2.0
    patience_seconds: float = 60.0
    idle_seconds: float = 0.0
    promote: str = "unless_worse"
    keep_versions: int = 0
    forget_after: int = 0
    compact_at: float = 0.5
    history: int = 0
    drift_windows: int = 20
    drift_least: int = 5
    drift_limit: float = 4.0

    def __post_init__(self) -> None:
        for key, allowed in (("on_bad_window", ("stop", "skip")), ("promote", PROMOTIONS)):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"service.{key}={getattr(self, key)!r}: choose one of {', '.join(allowed)}.")
        for key, least in _AT_LEAST.items():
            if not getattr(self, key) >= least:
                raise ConfigError(f"service.{key}={getattr(self, key)}: must be at least {least}.")
        if not 0 < self.compact_at <= 1:
            raise ConfigError(f"service.compact_at={self.compact_at}: must lie above 0 and at most at 1.")
        if not self.drift_limit > 0:
            raise ConfigError(f"service.drift_limit={self.drift_limit}: must be above 0.")
