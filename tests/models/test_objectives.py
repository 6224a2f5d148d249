"""Objectives: equal to the written-out loss, blind to padding and order, and each different from the others."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.errors import ConfigError
from mmrec_jax.objectives import (
    OBJECTIVES,
    ObjectiveConfig,
    gbce_loss,
    log_popularity,
    sampled_softmax_loss,
    softmax_loss,
    uniform_negatives,
)
from mmrec_jax.sequence import SasRec, SasRecConfig
from mmrec_jax.systems import IDS
from mmrec_jax.systems.config import ScoringConfig
from mmrec_jax.systems.id_table import IdTable
from mmrec_jax.training.items import CatalogueItems, SequentialFrozen
from mmrec_jax.training.sequential import SequentialRecommendation
from mmrec_jax.types import SequenceBatch
from tests.models.reference import in_batch_loss

ITEMS, WIDTH, LENGTH = 12, 8, 5
SEQUENCES = np.array(
    [
        [0, 0, 1, 2, 3, 2],  # repeats within a history
        [4, 5, 1, 6, 7, 8],
        [0, 0, 0, 0, 9, 1],
        [2, 3, 2, 10, 4, 11],
        [0, 0, 0, 0, 0, 0],  # a row that only fills the batch
    ]
)
COUNTS = np.array([0, 5, 9, 2, 4, 1, 1, 3, 2, 2, 1, 6, 0])


def batch_of(sequences, size=16):
    found, positions, counts = np.unique(np.append(0, sequences), return_inverse=True, return_counts=True)
    items, occurrences = np.zeros(size, np.int32), np.zeros(size, np.int32)
    items[: len(found)] = found
    occurrences[1 : len(found)] = counts[1:]
    users = np.where((sequences > 0).any(1), np.arange(len(sequences)), -1).astype(np.int32)
    steps = np.append(np.flatnonzero(sequences[:, :-1]), [sequences[:, :-1].size] * 3).astype(np.int32)
    return SequenceBatch(items, occurrences, positions[1:].reshape(sequences.shape).astype(np.int32), steps, users)


def task_of(kind="in_batch_softmax", scoring=None, **objective):
    return SequentialRecommendation(
        CatalogueItems(IdTable(ITEMS + 1, WIDTH), (IDS,)),
        SasRecConfig(width=WIDTH, length=LENGTH, dropout=0.0),
        ObjectiveConfig(kind=kind, **objective),
        scoring or ScoringConfig(),
    )


FROZEN = SequentialFrozen(None, log_popularity(COUNTS))


def params_of(task, seed=3):
    params = jax.jit(task.init)(jax.random.key(0), FROZEN)
    rng = np.random.default_rng(seed)
    params["items"]["embedding"] = jnp.asarray(rng.standard_normal((ITEMS + 1, WIDTH)), jnp.float32)
    return params


def loss_of(task, sequences=SEQUENCES, size=16, seed=0):
    return float(
        jax.jit(loss, static_argnums=0)(task, params_of(task), batch_of(sequences, size), jax.random.key(seed))
    )


def users_of(task, params, table, mask):
    items = jnp.asarray(table[SEQUENCES[:, :-1]], jnp.float32)
    encode = jax.jit(partial(SasRec(task.user).apply, train=False))
    return encode({"params": params["users"]}, items, mask)


def loss(task, params, batch, rng):
    return task.loss(params, FROZEN, task.inputs(FROZEN, batch, rng), rng)[0]


def test_distinct_items_with_counts_equal_the_loss_over_all_occurrences():
    task = task_of()
    params = params_of(task)
    table = np.asarray(params["items"]["embedding"], np.float64)
    mask = SEQUENCES[:, :-1] > 0
    users = users_of(task, params, table, mask)
    shares = {item: count / COUNTS.sum() for item, count in enumerate(COUNTS) if count}
    expected = in_batch_loss(np.asarray(users, np.float64), table, SEQUENCES, shares)
    assert loss_of(task) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_padding_and_order_of_users_do_not_matter(kind):
    task = task_of(kind)
    expected = loss_of(task)
    assert loss_of(task, size=40) == pytest.approx(expected, rel=1e-5)  # sum order
    assert loss_of(task, np.vstack([SEQUENCES, np.zeros((3, 6), int)])) == pytest.approx(expected, rel=1e-5)
    assert loss_of(task, SEQUENCES[[2, 0, 4, 1, 3]]) == pytest.approx(expected, rel=1e-5)


def test_every_objective_is_another_function():
    losses = {kind: loss_of(task_of(kind, negatives=3)) for kind in OBJECTIVES}
    assert len({round(value, 6) for value in losses.values()}) == len(OBJECTIVES)


def test_log_q_and_history_mask_are_read():
    losses = {loss_of(task_of()), loss_of(task_of(log_q=0.0)), loss_of(task_of(mask_history=False))}
    assert len(losses) == 3


def test_full_softmax_is_cross_entropy_over_the_catalogue_without_the_own_history():
    task = task_of("full_softmax")
    params = params_of(task)
    table = np.asarray(params["items"]["embedding"], np.float64)
    users = np.asarray(users_of(task, params, table, SEQUENCES[:, :-1] > 0), np.float64)
    losses = []
    for b, sequence in enumerate(SEQUENCES):
        for j in range(LENGTH):
            if sequence[j]:
                kept = [i for i in range(1, ITEMS + 1) if i not in sequence or i == sequence[j + 1]]
                logits = users[b, j] @ table[kept].T
                losses.append(np.log(np.exp(logits).sum()) - users[b, j] @ table[sequence[j + 1]])
    assert loss_of(task) == pytest.approx(np.mean(losses), rel=1e-5)


def test_sampled_losses_equal_their_definitions():
    rng = np.random.default_rng(0)
    positive, negative = rng.standard_normal(4), rng.standard_normal((4, 6))
    allowed = rng.random((4, 6)) > 0.3
    expected = [np.log(np.exp(p) + np.exp(n[a]).sum()) - p for p, n, a in zip(positive, negative, allowed, strict=True)]
    np.testing.assert_allclose(sampled_softmax_loss(positive, negative, allowed), expected, rtol=1e-5)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731  # a formula
    rate = 6 / 100
    for calibration in (0.0, 0.5, 1.0):
        beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
        expected = [
            -beta * np.log(sigmoid(p)) - np.log(1 - sigmoid(n[a])).sum()
            for p, n, a in zip(positive, negative, allowed, strict=True)
        ]
        np.testing.assert_allclose(gbce_loss(positive, negative, allowed, 101, calibration), expected, rtol=1e-5)


def test_bce_is_gbce_without_calibration():
    assert loss_of(task_of("bce", negatives=3)) == pytest.approx(
        loss_of(task_of("gbce", negatives=3, calibration=0.0)), rel=1e-6
    )


def test_a_target_outside_the_allowed_candidates_still_counts_once():
    logits = jnp.array([[1.0, 2.0, 3.0]])
    loss = softmax_loss(logits, jnp.array([2]), jnp.array([[True, False, False]]))
    np.testing.assert_allclose(loss, [np.log(np.exp(1) + np.exp(3)) - 3], rtol=1e-6)


def test_negatives_cover_the_catalogue_and_never_the_padding():
    drawn = np.asarray(uniform_negatives(jax.random.key(0), 5000, ITEMS))
    assert set(drawn) == set(range(1, ITEMS + 1))


def test_an_unknown_objective_is_refused():
    with pytest.raises(ConfigError, match="choose one of"):
        ObjectiveConfig(kind="hinge")


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_learns_a_repeating_pattern(kind):
    import optax

    task = task_of(kind, ScoringConfig("cosine", 10.0), negatives=8)
    chain = np.array([[(start + step) % ITEMS + 1 for step in range(6)] for start in range(ITEMS)])
    batch, params = batch_of(chain), params_of(task)
    optimizer = optax.adam(0.02)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, rng):
        grads = jax.grad(lambda p: loss(task, p, batch, rng))(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    for number in range(80):
        params, state = step(params, state, jax.random.key(number))
    vectors = params["items"]["embedding"]
    users = jax.jit(task.user_vectors)(params, vectors, jnp.asarray(chain[:, :-1], jnp.int32))
    scores = np.array(users @ task.score_vectors(vectors).T)
    scores[:, 0] = -np.inf
    for row, sequence in enumerate(chain):
        scores[row, sequence[:-1]] = -np.inf
    assert (scores.argmax(1) == chain[:, -1]).mean() > 0.9


def test_a_learned_scale_is_a_parameter_and_changes_the_scores():
    task = task_of(scoring=ScoringConfig("cosine", 5.0, learn_scale=True))
    params = params_of(task)
    assert float(jnp.exp(params["scale"]["log"])) == pytest.approx(5.0)
    grads = jax.jit(jax.grad(lambda p: loss(task, p, batch_of(SEQUENCES), jax.random.key(0))))(params)
    assert float(grads["scale"]["log"]) != 0
