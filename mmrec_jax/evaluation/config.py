"""Settings of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from mmrec_jax.errors import ConfigError


@dataclass(frozen=True)
class EvaluationConfig:
    """How held-out items are ranked and what is reported about the ranks.

    Attributes:
        ks: cut-offs of every metric.
        mask_history: items that the user already had are taken out of the ranking.
        repeats_are_misses: a held-out item that the user already had counts as a miss, because its item is
            masked (the field's protocol). Off, such a target alone is exempt from the mask. It has no effect
            where `mask_history` is off: there is no mask then that a target could fall under.
        lists: also collect the top-k lists, for catalogue coverage and average popularity.
        slices: also report the metrics of slices of the users.
        length_edges: lower bounds of the history-length buckets after the first, which begins at 0.
        bootstrap: number of resamples behind the confidence intervals; 0 leaves intervals out.
        confidence: coverage of the intervals.
        seed: of the resampling.
        user_block: users scored by one call; the last block is padded to it.
    """

    ks: tuple[int, ...] = (10, 20, 50)
    mask_history: bool = True
    repeats_are_misses: bool = True
    lists: bool = True
    slices: bool = True
    length_edges: tuple[int, ...] = (5, 10, 20, 50)
    bootstrap: int = 1000
    confidence: float = 0.95
    seed: int = 0
    user_block: int = 1024

    def __post_init__(self) -> None:
        if not self.ks or any(k < 1 for k in self.ks):
            raise ConfigError(f"evaluation.ks = {self.ks}: name at least one cut-off, each 1 or more")
        if list(self.length_edges) != sorted(set(self.length_edges)) or any(e < 1 for e in self.length_edges):
            raise ConfigError(f"evaluation.length_edges = {self.length_edges}: must be positive and increasing")
        if self.bootstrap < 0:
            raise ConfigError(f"evaluation.bootstrap = {self.bootstrap}: a number of resamples, or 0 for none")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"evaluation.confidence = {self.confidence}: must lie between 0 and 1")
        if self.user_block < 1:
            raise ConfigError(f"evaluation.user_block = {self.user_block}: must be 1 or more")
