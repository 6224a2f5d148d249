"""Whether a candidate takes the place of the model in service: a paired bootstrap over the same users."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from mmrec_jax.errors import ConfigError, EvaluationError
from mmrec_jax.evaluation.metrics import metrics
from mmrec_jax.evaluation.pairing import HeldOut, unpaired
from mmrec_jax.evaluation.significance import Difference, differences
from mmrec_jax.streaming.service_config import PROMOTIONS


@dataclass(frozen=True)
class Tried:
    """A model's ranks on a window.

    Attributes:
        held_out: user and held-out item of each example, and what was ranked. A user may have several.
        ranks: rank of each held-out item, 1 being the best.
    """

    held_out: HeldOut
    ranks: Int[np.ndarray, " example"]


@dataclass(frozen=True)
class Verdict:
    """What a comparison came to.

    Attributes:
        promoted: whether the candidate takes the place.
        reason: in words, with the numbers.
        difference: candidate minus model in service in the metric that decides; None where nothing is in service.
        candidate, serving: the metric of each; None likewise.
        users: that were compared.
    """

    promoted: bool
    reason: str
    difference: Difference | None
    candidate: float
    serving: float | None
    users: int

    def as_json(self) -> dict[str, Any]:
        """Plain values for a report."""
        return asdict(self)


def judge(
    candidate: Tried,
    serving: Tried | None,
    *,
    rule: str = "unless_worse",
    metric: str = "NDCG@10",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Verdict:
    """Compares a candidate with the model in service, user by user.

    Args:
        candidate: the model just trained, on a window that neither model was trained on.
        serving: the model in service on the same window; None promotes the candidate, being the first.
        rule: `unless_worse` promotes unless the interval of the difference lies below 0 as a whole; `better` only if
            it lies above 0 as a whole; `always` promotes.
        metric: that decides, such as NDCG@10.
        resamples, confidence, seed: of the bootstrap over users.

    Raises:
        ConfigError: the rule is unknown.
        EvaluationError: the two were not tried on the same users, items and candidates.
    """
    if rule not in PROMOTIONS:
        raise ConfigError(f"service.promote={rule!r}: choose one of {', '.join(PROMOTIONS)}.")
    k = int(metric.partition("@")[2])
    own, users = metrics(candidate.ranks, (k,))[metric], len(np.unique(candidate.held_out.users))
    if serving is None:
        return Verdict(True, "no model is in service", None, own, None, users)
    if texts := unpaired(candidate.held_out, serving.held_out):
        raise EvaluationError(
            "The candidate and the model in service cannot be compared user by user: " + "; ".join(texts)
        )
    other = metrics(serving.ranks, (k,))[metric]
    found = differences(
        candidate.ranks,
        serving.ranks,
        (k,),
        users=candidate.held_out.users,
        resamples=resamples,
        confidence=confidence,
        seed=seed,
    )[metric]
    promoted = {"always": True, "better": found.low > 0, "unless_worse": found.high >= 0}[rule]
    return Verdict(promoted, _reason(promoted, rule, metric, found, confidence, users), found, own, other, users)


def _reason(promoted: bool, rule: str, metric: str, found: Difference, confidence: float, users: int) -> str:
    span = (
        f"{metric} {100 * found.mean:+.2f} points against the model in service "
        f"({100 * confidence:g}%: {100 * found.low:+.2f} to {100 * found.high:+.2f}; {users:,} users)"
    )
    why = {
        ("always", True): "rule `always`",
        ("better", True): "better",
        ("better", False): "not shown to be better",
        ("unless_worse", True): "not shown to be worse",
        ("unless_worse", False): "worse",
    }[rule, promoted]
    return f"{why}: {span}"
