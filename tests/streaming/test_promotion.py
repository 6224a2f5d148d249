"""Whether a candidate takes the place of the model in service."""

from __future__ import annotations

import numpy as np
import pytest

from mmrec_jax.errors import ConfigError, EvaluationError
from mmrec_jax.evaluation.pairing import HeldOut
from mmrec_jax.streaming.promotion import Tried, judge

USERS = 300
RANKS = np.random.default_rng(0).integers(1, 60, USERS)


def tried(ranks: np.ndarray, **changes) -> Tried:
    users = np.array([f"u{number:04d}" for number in range(len(ranks))])
    held_out = {"users": users, "targets": np.repeat("a", len(ranks)), "candidates": np.array(["a", "b"])}
    return Tried(HeldOut(**(held_out | changes)), ranks)


BETTER, EQUAL, WORSE = np.maximum(RANKS - 30, 1), np.random.default_rng(1).permutation(RANKS), RANKS + 30


@pytest.mark.parametrize(
    ("rule", "promoted"),
    [("unless_worse", (True, True, False)), ("better", (True, False, False)), ("always", (True, True, True))],
)
def test_each_rule_promotes_what_it_says(rule, promoted):
    verdicts = [judge(tried(ranks), tried(RANKS), rule=rule) for ranks in (BETTER, EQUAL, WORSE)]
    assert tuple(verdict.promoted for verdict in verdicts) == promoted


def test_the_first_candidate_is_promoted():
    verdict = judge(tried(WORSE), None, rule="better")
    assert verdict.promoted
    assert verdict.difference is None
    assert "no model is in service" in verdict.reason


def test_the_reason_tells_difference_interval_and_number_of_users():
    verdict = judge(tried(WORSE), tried(RANKS), metric="HR@10")
    assert verdict.reason.startswith("worse: HR@10 -")
    assert f"{USERS} users" in verdict.reason
    assert verdict.candidate == np.mean(WORSE <= 10)
    assert verdict.serving == np.mean(RANKS <= 10)
    assert verdict.difference.mean == pytest.approx(verdict.candidate - verdict.serving)
    assert verdict.as_json()["difference"]["mean"] == verdict.difference.mean


def test_examples_of_a_user_are_drawn_together():
    # Ten users of 30 examples each, six of whom the candidate serves worse: as many independent examples would tell.
    owners = np.repeat([f"u{number}" for number in range(10)], 30)
    serving, candidate = (tried(np.repeat(ranks, 30), users=owners) for ranks in ([5] * 10, [4] * 4 + [7] * 6))
    apart = judge(candidate, serving)
    assert apart.users == 10
    assert apart.promoted
    alone = judge(Tried(tried(candidate.ranks).held_out, candidate.ranks), tried(serving.ranks))
    assert not alone.promoted
    assert apart.difference.mean == alone.difference.mean < 0
    assert apart.difference.low < alone.difference.low


def test_the_same_ranks_give_the_same_verdict_again():
    assert judge(tried(EQUAL), tried(RANKS)) == judge(tried(EQUAL), tried(RANKS))


def test_models_tried_on_other_users_or_candidates_are_not_compared():
    with pytest.raises(EvaluationError, match="users: 300 and 299"):
        judge(tried(RANKS), tried(RANKS[:-1]))
    with pytest.raises(EvaluationError, match="candidate items: 2 and 1"):
        judge(tried(RANKS), tried(RANKS, candidates=np.array(["a"])))


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ConfigError, match="choose one of unless_worse"):
        judge(tried(RANKS), None, rule="maybe")
