"""Mixtures of modality experts: dense, routed, what is dropped, and what routers are told and lose."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_jax.errors import ConfigError
from mmrec_jax.fusion import FusionConfig, fuse_modalities
from mmrec_jax.fusion.routing import Choices, capacity_of, dispatch, slots
from mmrec_jax.types import LOSSES, METRICS, TRAINING
from tests.models.helpers import random_params
from tests.models.reference_experts import fused

NAMES = ("image", "text")  # in the order that a traced dict has
ROWS, WIDTH, EXPERTS = 12, 6, 4
CLOSE = {"rtol": 2e-5, "atol": 2e-6}  # float32 against float64, two small products


def config(**values):
    return FusionConfig(**{"kind": "experts", "experts": EXPERTS, "jitter": 0.0, **values})


def inputs(seed=0, absent=(), names=NAMES):
    """Vectors and a presence mask; `absent`: (row, column) pairs."""
    rng = np.random.default_rng(seed)
    vectors = {name: jnp.asarray(rng.standard_normal((ROWS, WIDTH)), jnp.float32) for name in names}
    present = np.ones((ROWS, len(names)), bool)
    for place in absent:
        present[place] = False
    return vectors, jnp.asarray(present)


def parameters(made, vectors, present, seed=0):
    class Bound:  # `random_params` initialises with one argument
        @staticmethod
        def init(key, _):
            return fuse_modalities(made).init(key, vectors, present)

    return random_params(Bound, None, seed, scale=0.5)


@partial(jax.jit, static_argnums=(0, 4, 6))
def applied(made, params, vectors, present, training, key=None, complete=False):
    rngs = {TRAINING: jax.random.key(0) if key is None else key} if training else {}
    module = fuse_modalities(made)
    return module.apply({"params": params}, vectors, present, complete, rngs=rngs, mutable=[LOSSES, METRICS])


def plain(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def reference(made, params, vectors, present, **options):
    masks = {name: np.asarray(present)[:, i] for i, name in enumerate(vectors)}
    told = {"top_k": made.top_k, "renormalise": made.renormalise, "residual": made.residual}
    return fused(plain(params), plain(vectors), masks, temperature=made.temperature, **told, **options)


ABSENT = ((0, 0), (3, 1), (4, 0), (7, 1), (8, 1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "made",
    [
        config(),
        config(expert="linear", temperature=0.5),
        config(top_k=2, capacity_factor=9.0, residual=True),
        config(top_k=1, renormalise=False, capacity_factor=9.0),
        config(top_k=3, expert="linear", capacity_factor=9.0),
    ],
    ids=lambda made: f"{made.expert}-{made.top_k}",
)
def test_item_vectors_and_losses_equal_the_equations(made, training):
    vectors, present = inputs(absent=ABSENT)
    params = parameters(made, vectors, present)
    result, kept = applied(made, params, vectors, present, training)
    expected, _, losses = reference(made, params, vectors, present)
    np.testing.assert_allclose(result.vector, expected, **CLOSE)
    if made.top_k:
        for name, value in losses.items():
            weight = made.balance_weight if "balance" in name else made.z_weight
            np.testing.assert_allclose(kept[METRICS][name][0], value, rtol=2e-5)
            np.testing.assert_allclose(kept[LOSSES][name][0], weight * value, rtol=2e-5)
    else:
        assert LOSSES not in kept


def test_one_expert_is_momef():
    made, vectors_present = config(experts=1), inputs(absent=ABSENT)
    params = parameters(made, *vectors_present)
    ours = applied(made, params, *vectors_present, True)[0]
    momef = {name: value for name, value in params.items() if name.startswith("gate")}
    for name in NAMES:
        own = params[f"experts_{name}"]
        momef[f"expert_{name}_in"] = {"kernel": own["kernel"][0], "bias": own["bias"][0]}
        momef[f"expert_{name}_out"] = {"kernel": own["out"][0], "bias": own["out_bias"][0]}
    theirs = applied(FusionConfig(), momef, *vectors_present, True)[0]
    np.testing.assert_allclose(ours.vector, theirs.vector, **CLOSE)
    np.testing.assert_array_equal(ours.weights, theirs.weights)


@pytest.mark.parametrize("groups", [1, 3])
def test_an_expert_takes_the_largest_shares_up_to_its_capacity_and_drops_the_rest(groups):
    made = config(top_k=2, capacity_factor=0.6, groups=groups)
    vectors, present = inputs(absent=ABSENT)
    params = parameters(made, vectors, present)
    capacity = math.ceil(0.6 * (ROWS // groups) * 2 / EXPERTS)
    result, kept = applied(made, params, vectors, present, True)
    expected, dropped, _ = reference(made, params, vectors, present, capacity=capacity, groups=groups)
    assert sum(dropped.values()) > 0
    assert {name: int(kept[METRICS][f"choices_dropped_{name}"][0]) for name in NAMES} == dropped
    np.testing.assert_allclose(result.vector, expected, **CLOSE)
    everything = reference(made, params, vectors, present)[0]
    np.testing.assert_allclose(applied(made, params, vectors, present, False)[0].vector, everything, **CLOSE)


@pytest.mark.parametrize("capacity_factor", [0.6, 9.0])
@pytest.mark.parametrize("expert", ["mlp", "linear"])
def test_gradients_equal_finite_differences_of_the_equations(expert, capacity_factor):
    made = config(top_k=2, capacity_factor=capacity_factor, expert=expert)
    vectors, present = inputs(absent=ABSENT)
    params = parameters(made, vectors, present)
    rng = np.random.default_rng(1)
    probe = rng.standard_normal((ROWS, WIDTH))
    capacity = capacity_of(ROWS, 2, EXPERTS, capacity_factor)

    def ours(params, vectors):
        result, kept = applied(made, params, vectors, present, True)
        return jnp.sum(result.vector * probe) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(kept[LOSSES]))

    def theirs(params, vectors):
        value, _, losses = reference(made, params, vectors, present, capacity=capacity)
        weights = {"balance": made.balance_weight, "z": made.z_weight}
        return (value * probe).sum() + sum(weights[name.split("_")[1]] * loss for name, loss in losses.items())

    at = plain((params, vectors))
    gradients = jax.jit(jax.grad(ours, (0, 1)))(params, vectors)
    for _ in range(4):
        step = jax.tree.map(lambda leaf: 1e-6 * rng.standard_normal(leaf.shape), at)
        ahead, behind = (jax.tree.map(lambda x, d, sign=sign: x + sign * d, at, step) for sign in (1, -1))
        slope = (theirs(*ahead) - theirs(*behind)) / 2
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (np.asarray(g, np.float64) * d).sum(), gradients, step)))
        np.testing.assert_allclose(along, slope, rtol=1e-4, atol=1e-10)  # float32 sums over a few hundred terms of 1e-6


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.sets(st.tuples(st.integers(0, ROWS - 1), st.integers(0, 1)), max_size=20))
def test_routing_to_all_experts_equals_none(seed, absent):
    vectors, present = inputs(seed, absent)
    dense, routed = config(), config(top_k=EXPERTS, capacity_factor=1.0)
    params = parameters(dense, vectors, present, seed)
    result, kept = applied(routed, params, vectors, present, True)
    np.testing.assert_allclose(result.vector, applied(dense, params, vectors, present, True)[0].vector, **CLOSE)
    assert not any(kept[METRICS][f"choices_dropped_{name}"][0] for name in NAMES)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16), st.sets(st.tuples(st.integers(0, ROWS - 1), st.integers(0, 1)), min_size=1, max_size=20))
def test_absent_modalities_never_route(seed, absent):
    made = config(top_k=2, capacity_factor=0.6)
    vectors, present = inputs(seed, absent)
    params = parameters(made, vectors, present, seed)
    result, kept = applied(made, params, vectors, present, True)
    for row, column in absent:
        vectors[NAMES[column]] = vectors[NAMES[column]].at[row].set(1e6)
    other, again = applied(made, params, vectors, present, True)
    np.testing.assert_array_equal(other.vector, result.vector)
    jax.tree.map(np.testing.assert_array_equal, again, kept)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(ROWS)), st.sampled_from([0.6, 9.0]))
def test_the_order_of_items_changes_nothing(order, capacity_factor):
    made, order = config(top_k=2, capacity_factor=capacity_factor), np.array(order)
    vectors, present = inputs(absent=ABSENT)
    params = parameters(made, vectors, present)
    result, kept = applied(made, params, vectors, present, True)
    turned, other = applied(made, params, {n: x[order] for n, x in vectors.items()}, present[order], True)
    np.testing.assert_allclose(turned.vector, np.asarray(result.vector)[order], **CLOSE)
    dropped = f"choices_dropped_{NAMES[0]}"
    assert (int(kept[METRICS][dropped][0]) > 0) == (capacity_factor < 1)
    assert kept[METRICS][dropped] == other[METRICS][dropped]


def test_padding_rows_of_a_complete_catalogue_take_no_room():
    made = config(top_k=2, capacity_factor=1.0)
    vectors, present = inputs(absent=[(row, column) for row in (0, 9, 10, 11) for column in (0, 1)])
    params = parameters(made, vectors, present)
    run = partial(applied, made, params, vectors, present, True, None)
    masked, complete = run(False), run(True)
    np.testing.assert_allclose(masked[0].vector[1:9], complete[0].vector[1:9], **CLOSE)
    jax.tree.map(np.testing.assert_array_equal, masked[1], complete[1])


def test_jitter_is_of_the_key_and_of_training_only():
    made = config(jitter=0.3)
    vectors, present = inputs()
    params = parameters(made, vectors, present)
    run = partial(applied, made, params, vectors, present)
    first, same, other = (run(True, jax.random.key(seed))[0].vector for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(run(False)[0].vector, applied(config(), params, vectors, present, False)[0].vector)


def test_a_router_that_sends_all_to_one_expert_is_seen():
    made = config(top_k=1, renormalise=False, capacity_factor=1.0)
    vectors, present = inputs(names=("text",))
    vectors["text"] = jnp.abs(vectors["text"])
    params = parameters(made, vectors, present)
    params["router_text"] = jnp.zeros((WIDTH, EXPERTS)).at[:, 2].set(30.0)
    metrics = applied(made, params, vectors, present, True)[1][METRICS]
    assert float(metrics["expert_load_max_text"][0]) == EXPERTS
    assert float(metrics["expert_load_min_text"][0]) == 0
    assert int(metrics["experts_dead_text"][0]) == 3
    assert int(metrics["choices_dropped_text"][0]) == ROWS - ROWS // EXPERTS
    assert float(metrics["router_balance_text"][0]) == pytest.approx(EXPERTS)  # its largest value
    assert float(metrics["router_entropy_text"][0]) == pytest.approx(0, abs=1e-6)


def test_every_slot_holds_one_choice_and_every_choice_lies_in_one_slot_or_none():
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((20, 5)), axis=1)[:, :2]
    experts[4:7] = 5  # vectors that are not there
    choices = Choices(jnp.asarray(experts, jnp.int32), jnp.asarray(rng.random((20, 2)), jnp.float32))
    found = slots(choices, 5, 6)
    of_choice, choice = np.asarray(found.of_choice), np.asarray(found.choice)
    for slot, each in enumerate(choice):
        assert each == 40 or (of_choice[each] == slot and experts.reshape(-1)[each] == slot // 6)
    assert (np.sort(of_choice[of_choice < 30]) == np.flatnonzero(choice < 40)).all()
    assert (of_choice.reshape(20, 2)[4:7] == 30).all()
    buffers = dispatch(jnp.arange(20.0)[:, None], found)[:, 0]
    np.testing.assert_array_equal(buffers, np.where(choice < 40, choice // 2, 0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"expert": "identity"}, "choose mlp or linear"),
        ({"experts": 0}, "at least 1"),
        ({"top_k": 5}, "a number up to fusion.experts=4"),
        ({"top_k": 1}, "set fusion.renormalise=False"),
        ({"capacity_factor": 0.0}, "above 0"),
        ({"jitter": 1.0}, "must lie in"),
        ({"z_weight": -1.0}, "must not be negative"),
        ({"kind": "momef", "experts": 2}, "means nothing to fusion.kind='momef'"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        config(**{"jitter": 0.01, "experts": 4} | values)
