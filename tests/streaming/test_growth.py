"""Experts are added and taken away as the paper says, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from mmrec_jax.streaming import growth
from tests.models import reference_ladder as reference

WIDTH, BOTTLENECK, CAPACITY = 6, 3, 4
NAMES = ("poster_1", "poster_2", "title_1")


def rung(rng, experts, capacity=CAPACITY):
    """Random values in the first slots."""
    used = np.arange(capacity) < experts
    rows = np.concatenate([[True], used])

    def values(mask, *shape):
        drawn = rng.normal(size=(len(mask), *shape)).astype(np.float32)
        return np.where(mask.reshape(-1, *[1] * len(shape)), drawn, 0)

    return {
        "experts": {
            "down": values(used, BOTTLENECK, WIDTH),
            "up": values(used, BOTTLENECK, WIDTH),
            "active": used.astype(np.float32),
            "trainable": used.astype(np.float32),
            "born": np.where(used, 0, growth.UNUSED).astype(np.float32),
        },
        "router": {
            "rows": values(rows, WIDTH),
            "active": rows.astype(np.float32),
            "trainable": rows.astype(np.float32),
        },
    }


def parameters(experts=2, seed=0):
    """Of a task with two modalities."""
    rng = np.random.default_rng(seed)
    return {
        "items": {
            "ladders": {f"rung_{name}": rung(rng, experts) for name in NAMES},
            "project_title": rng.normal(size=(2, WIDTH)).astype(np.float32),
        },
        "users": {"norm": {"scale": np.ones(3, np.float32)}},
    }


def snapshot(params):
    if isinstance(params, dict):
        return {key: snapshot(node) for key, node in params.items()}
    return params.tobytes(), params.dtype, params.shape


def as_lists(node):
    """A rung as the reference has it, in the order of the slots."""
    used = np.flatnonzero(node["experts"]["active"])
    experts = [(node["experts"]["down"][slot], node["experts"]["up"][slot].T) for slot in used]
    return experts, node["router"]["rows"][np.flatnonzero(node["router"]["active"])]


def check_equal(node, experts, rows):
    mine, own_rows = as_lists(node)
    for a, b in zip(mine, experts, strict=True):
        for left, right in zip(a, b, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-7)  # one rounding of a mean to float32
    np.testing.assert_array_equal(own_rows, rows)


def test_rungs_are_found_by_name_wherever_they_lie():
    params = parameters()
    assert tuple(growth.rungs(params)) == tuple(growth.rungs({"content": params["items"]})) == NAMES
    rung = growth.rungs(params)["poster_2"]
    assert rung.path == ("items", "ladders", "rung_poster_2")
    assert rung.capacity == CAPACITY
    assert (rung.used.tolist(), rung.free.tolist()) == ([0, 1], [2, 3])
    assert not growth.rungs({"items": {"embedding": np.ones((3, 2))}})


def test_expansion_adds_the_mean_of_all_experts_and_a_router_row():
    before = parameters()
    kept = snapshot(before)
    after, born, full = growth.expand(before, 5, np.random.default_rng(3))
    assert snapshot(before) == kept
    assert (born, full) == (tuple(growth.Born(name, 2) for name in NAMES), ())
    for name in NAMES:
        old, new = before["items"]["ladders"][f"rung_{name}"], after["items"]["ladders"][f"rung_{name}"]
        row = new["router"]["rows"][3]
        check_equal(new, *reference.expanded(*as_lists(old), row))
        assert np.abs(row).max() <= 1 / np.sqrt(WIDTH)
        assert len(set(row.tolist())) == WIDTH
        assert new["experts"]["trainable"].tolist() == [0, 0, 1, 0]
        assert new["experts"]["born"].tolist() == [0, 0, 5, growth.UNUSED]
        assert new["router"]["trainable"].tolist() == [1, 1, 1, 1, 0]
    assert after["users"] is before["users"]


def test_expansion_repeats_itself_with_the_same_generator():
    one, *_ = growth.expand(parameters(), 1, np.random.default_rng(3))
    same, *_ = growth.expand(parameters(), 1, np.random.default_rng(3))
    other, *_ = growth.expand(parameters(), 1, np.random.default_rng(4))
    assert snapshot(one) == snapshot(same) != snapshot(other)


def test_a_full_rung_is_left_as_it_is_and_named():
    before = parameters(CAPACITY)
    after, born, full = growth.expand(before, 1, np.random.default_rng(0))
    assert (born, full) == ((), NAMES)
    assert snapshot(after) == snapshot(before)


@pytest.mark.parametrize("seed", range(8))
def test_pruning_takes_what_the_paper_takes(seed):
    rng = np.random.default_rng(seed)
    experts = int(rng.integers(1, CAPACITY + 1))
    before = parameters(experts, seed)
    kept = snapshot(before)
    utilisation = {name: np.append(rng.dirichlet(np.ones(experts)), np.zeros(CAPACITY - experts)) for name in NAMES}
    after, pruned = growth.prune(before, utilisation, 0.2)
    assert snapshot(before) == kept
    taken = {one.rung: one.slot for one in pruned}
    for name in NAMES:
        old, new = before["items"]["ladders"][f"rung_{name}"], after["items"]["ladders"][f"rung_{name}"]
        *left, number = reference.pruned(*as_lists(old), utilisation[name][:experts], 0.2)
        check_equal(new, *left)
        assert taken.get(name) == number
        if number is None:
            assert snapshot(new) == snapshot(old)
        else:
            assert not new["experts"]["down"][number].any()
            assert new["experts"]["born"][number] == growth.UNUSED
            assert new["experts"]["trainable"][number] == new["router"]["trainable"][number + 1] == 0
    assert {one.rung: one.utilisation for one in pruned} == pytest.approx(
        {name: utilisation[name][slot] for name, slot in taken.items()}
    )


def test_utilisation_may_have_any_unit_and_unused_slots_are_not_read():
    params = parameters(3)
    shares = np.array([5.0, 0.5, 4.5, 0.0])
    for utilisation in (shares, shares / 10, np.array([5.0, 0.5, 4.5, np.nan])):
        _, pruned = growth.prune(params, dict.fromkeys(NAMES, utilisation), 0.1)
        assert [(one.slot, one.utilisation) for one in pruned] == [(1, pytest.approx(0.05))] * 3
    assert not growth.prune(params, dict.fromkeys(NAMES, shares), 0.05)[1]  # at the threshold is not below it
    assert not growth.prune(params, dict.fromkeys(NAMES, np.zeros(CAPACITY)), 0.2)[1]


def test_a_slot_that_was_pruned_is_used_again():
    params, _ = growth.prune(parameters(3), dict.fromkeys(NAMES, np.array([0.05, 0.5, 0.45, 0])), 0.1)
    mean = (params["items"]["ladders"]["rung_title_1"]["experts"]["up"][[1, 2]]).mean(axis=0)
    params, born, _ = growth.expand(params, 7, np.random.default_rng(0))
    assert {one.slot for one in born} == {0}
    node = params["items"]["ladders"]["rung_title_1"]
    np.testing.assert_allclose(node["experts"]["up"][0], mean, rtol=1e-6)  # float32
    told = growth.describe(params, dict.fromkeys(NAMES, np.array([2.0, 1, 1, 0])))
    assert told["title_1"] == [
        {"slot": 0, "born": 7, "trainable": True, "utilisation": 0.5},
        {"slot": 1, "born": 0, "trainable": False, "utilisation": 0.25},
        {"slot": 2, "born": 0, "trainable": False, "utilisation": 0.25},
    ]
    assert growth.describe(params)["title_1"][0]["utilisation"] is None


def test_more_slots_change_no_expert():
    params = parameters(CAPACITY)
    grown = growth.grow_capacity(params, 6)
    for name, rung in growth.rungs(grown).items():
        assert rung.free.tolist() == [4, 5]
        check_equal(grown["items"]["ladders"][f"rung_{name}"], *as_lists(params["items"]["ladders"][f"rung_{name}"]))
        assert rung.experts["born"].tolist() == [0, 0, 0, 0, growth.UNUSED, growth.UNUSED]
    _, born, full = growth.expand(grown, 1, np.random.default_rng(0))
    assert ({one.slot for one in born}, full) == ({4}, ())
    assert growth.counts(grown) == growth.counts(params)
    with pytest.raises(ValueError, match="has 4 slots: capacity=3"):
        growth.grow_capacity(params, 3)


def test_parameters_are_counted_without_unused_slots_and_masks():
    per_expert, others = 2 * BOTTLENECK * WIDTH, 2 * WIDTH + 3
    total = others + len(NAMES) * (2 * per_expert + 3 * WIDTH)
    assert growth.counts(parameters()) == (total, total)
    params, *_ = growth.expand(parameters(), 1, np.random.default_rng(0))
    total += len(NAMES) * (per_expert + WIDTH)
    assert growth.counts(params) == (total - len(NAMES) * 2 * per_expert, total)
    measured = {"standardise": {"title_0": {"mean": np.ones(6), "scale": np.ones(())}}}
    assert growth.counts(params | measured) == growth.counts(params)


@pytest.mark.parametrize(
    ("utilisation", "message"),
    [
        ({}, "rung poster_1 has no utilisation"),
        (dict.fromkeys(NAMES, np.ones(3)), "has shape"),
        (dict.fromkeys(NAMES, np.array([1, np.nan, 1, 1])), "is not finite"),
    ],
)
def test_utilisation_that_does_not_fit_is_refused(utilisation, message):
    with pytest.raises(ValueError, match=message):
        growth.prune(parameters(), utilisation, 0.1)
