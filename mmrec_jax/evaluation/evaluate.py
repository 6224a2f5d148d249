"""Evaluation of one model on held-out items."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Int, Int32

from mmrec_jax.data.prepared import Examples
from mmrec_jax.data.ragged import Ragged
from mmrec_jax.errors import EmptySplitError, EvaluationError
from mmrec_jax.evaluation import slices
from mmrec_jax.evaluation.blocks import BlockShape
from mmrec_jax.evaluation.config import EvaluationConfig
from mmrec_jax.evaluation.lists import ListStatistics
from mmrec_jax.evaluation.metrics import metrics
from mmrec_jax.evaluation.ranking import MISS, ranked_blocks
from mmrec_jax.evaluation.scorer import Scorer
from mmrec_jax.evaluation.significance import Difference, Interval, differences, intervals
from mmrec_jax.evaluation.topk import check_k


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found. All metrics are fractions of 1, except Popularity@k (interactions).

    Attributes:
        metrics: name such as "NDCG@10" -> value.
        intervals: name -> bootstrap interval; {} if none were asked for.
        slices: what the examples are split by -> group -> "count" and metrics.
        users: user number of each example.
        targets: catalogue row of each held-out item.
        ranks: its rank, 1 being the best; `ranking.MISS` for a miss that no cut-off reaches.
        repeats: examples whose held-out item the user already had.
        num_items: size of the catalogue that was ranked.
        seconds: wall time from item vectors to lists and ranks, and with slices and intervals.
        config: the settings.
    """

    metrics: dict[str, float]
    intervals: dict[str, Interval]
    slices: dict[str, dict[str, dict[str, float]]]
    users: Int32[np.ndarray, " example"]
    targets: Int32[np.ndarray, " example"]
    ranks: Int32[np.ndarray, " example"]
    repeats: int
    num_items: int
    seconds: dict[str, float]
    config: EvaluationConfig

    def summary(self) -> dict[str, Any]:
        """Everything but the arrays, JSON-able."""
        return {
            "metrics": self.metrics,
            "intervals": {name: [span.low, span.high] for name, span in self.intervals.items()},
            "slices": self.slices,
            "examples": len(self.ranks),
            "repeats": self.repeats,
            "items": self.num_items,
            "seconds": self.seconds,
            "config": dataclasses.asdict(self.config),
        }

    def to_json(self) -> str:
        """`summary` as indented JSON."""
        return json.dumps(self.summary(), indent=2)

    def write_ranks(self, path: Path, user_ids: np.ndarray, item_ids: np.ndarray) -> None:
        """Write Parquet, one record an example: user, item, rank (null for a repeat that is a miss)."""
        columns = {"user": user_ids[self.users], "item": item_ids[self.targets], "rank": self.ranks}
        pl.DataFrame(columns).with_columns(pl.col("rank").replace(MISS, None)).write_parquet(path)


def evaluate(
    scorer: Scorer,
    examples: Examples,
    popularity: Int[np.ndarray, " row"],
    *,
    length: int,
    config: EvaluationConfig,
    present: Mapping[str, Bool[np.ndarray, " row"]] | None = None,
    candidates: Bool[np.ndarray, " row"] | None = None,
    blocks: BlockShape | None = None,
) -> EvaluationResult:
    """Rank every held-out item over the whole catalogue, or over some of it, and report.

    Args:
        scorer: the model.
        examples: histories and held-out items.
        popularity: training interactions of each catalogue row; its length says how many items there are.
        length: how many last items the model reads; the mask always covers whole histories.
        config: see there.
        present: modality -> catalogue rows that have it, for the slices by modalities.
        candidates: catalogue rows that are ranked; None for all but the padding.
        blocks: shape of a call in place of `config.user_block`, for evaluations that are to share what is compiled.

    Raises:
        EmptySplitError: no examples.
        ConfigError: a cut-off is larger than the catalogue.
        EvaluationError: scores that are not finite, or item vectors that do not fit the catalogue.
    """
    if not len(examples.targets):
        raise EmptySplitError("there is no held-out item to rank: choose another split")
    num_items = len(popularity) - 1 if candidates is None else int(candidates[1:].sum())
    check_k(max(config.ks), num_items)
    start = time.perf_counter()
    ranks, list_metrics = _rank(scorer, examples, popularity, length, config, candidates, blocks)
    ranked = time.perf_counter()
    values = metrics(ranks, config.ks) | list_metrics
    spans = {}
    if config.bootstrap:
        spans = intervals(ranks, config.ks, resamples=config.bootstrap, confidence=config.confidence, seed=config.seed)
    groups = {}
    if config.slices:
        slicings = [
            slices.by_popularity(popularity, examples.targets),
            slices.by_history_length(examples.histories.lengths, config.length_edges),
        ]
        if present:
            slicings.append(slices.by_modalities(present, examples.targets))
        groups = {slicing.title: slicing.metrics(ranks, config.ks) for slicing in slicings}
    seconds = {"ranking": ranked - start, "total": time.perf_counter() - start}
    repeats = int(examples.repeat.sum())
    return EvaluationResult(
        values,
        spans,
        groups,
        examples.users,
        examples.targets,
        ranks,
        repeats,
        num_items,
        seconds,
        config,
    )


def compare(first: EvaluationResult, second: EvaluationResult) -> dict[str, Difference]:
    """Paired differences of every metric, first minus second, with intervals and p-values; of 1,000 resamples where the
    results have no intervals.

    Raises:
        EvaluationError: the two were not evaluated on the same examples in the same order, or not with one
            config.
    """
    same = np.array_equal(first.users, second.users) and np.array_equal(first.targets, second.targets)
    if not same or first.num_items != second.num_items:
        raise EvaluationError(
            f"the results are of different examples ({len(first.users)} and {len(second.users)}): "
            "a paired comparison needs the same split of the same prepared data"
        )
    if first.config != second.config:
        raise EvaluationError(f"the results have different settings: {first.config} and {second.config}")
    config = first.config
    return differences(
        first.ranks,
        second.ranks,
        config.ks,
        resamples=config.bootstrap or EvaluationConfig.bootstrap,
        confidence=config.confidence,
        seed=config.seed,
    )


def _rank(
    scorer: Scorer,
    examples: Examples,
    popularity: Int[np.ndarray, " row"],
    length: int,
    config: EvaluationConfig,
    candidates: Bool[np.ndarray, " row"] | None,
    block_shape: BlockShape | None,
) -> tuple[Int32[np.ndarray, " example"], dict[str, float]]:
    item_vectors = scorer.item_vectors()
    if item_vectors.shape[0] != len(popularity):
        raise EvaluationError(
            f"the model has {item_vectors.shape[0] - 1} items but the catalogue {len(popularity) - 1}: "
            "evaluate it on the data it was trained on, or add the new items first"
        )
    k = max(config.ks) if config.lists else 0
    statistics = ListStatistics(popularity, k, candidates)
    seen: Ragged | None = examples.histories if config.mask_history else None
    blocks = ranked_blocks(
        lambda users: scorer.user_vectors(examples.inputs(users, length)),
        item_vectors,
        examples.targets,
        seen,
        k=k,
        user_block=block_shape or config.user_block,
        candidates=candidates,
    )
    ranks = np.empty(len(examples.targets), np.int32)
    for block in blocks:
        ranks[block.start : block.start + len(block.ranks)] = block.ranks
        statistics.update(block.items)
    if config.mask_history and config.repeats_are_misses:
        ranks[examples.repeat] = MISS
    return ranks, statistics.metrics(config.ks) if config.lists else {}
