"""XSMoE's item encoder computes the paper's equations, in whichever slots its experts lie."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.adapters.ladder import SAMPLED, LadderConfig, Ladders
from mmrec_jax.adapters.mixture import Experts, last_rung, router, rung
from mmrec_jax.adapters.towers import TowerSpec
from mmrec_jax.config import base, modality, resolve
from mmrec_jax.errors import ConfigError
from mmrec_jax.fusion import FusionConfig
from mmrec_jax.sequence import SasRec, SasRecConfig
from mmrec_jax.streaming import growth
from mmrec_jax.systems import CatalogueShape, StateShape, build
from mmrec_jax.systems.xsmoe import Xsmoe, XsmoeConfig
from mmrec_jax.types import HiddenStates
from tests.models import reference_ladder as reference
from tests.models.helpers import applied, begun, hidden

NAMES = ("image", "text")
WIDTH, BOTTLENECK, CAPACITY, OUT = 8, 3, 4, 5


def encoder(layers=3, experts=1, capacity=CAPACITY, **switches):
    specs = tuple(TowerSpec(name, WIDTH, layers, BOTTLENECK) for name in NAMES)
    return Xsmoe(XsmoeConfig(LadderConfig(specs, experts, capacity), FusionConfig(kind="add"), OUT, **switches))


def randomised(params, used, seed=0, scale=0.5):
    """All values random, also those of unused slots, so that nothing hides behind a zero; `used` are in use."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: (scale * rng.standard_normal(leaf.shape)).astype(np.float32), params)
    for name in growth.rungs(params):
        node = params["ladders"][f"rung_{name}"]
        mask = np.isin(np.arange(len(node["experts"]["active"])), used).astype(np.float32)
        node["experts"] |= {"active": mask, "trainable": mask, "born": mask - 1}
        node["router"] |= dict.fromkeys(("active", "trainable"), np.append(np.float32(1), mask))
    return params


def as_lists(node):
    slots = np.flatnonzero(node["experts"]["active"])
    down, up, rows = (np.asarray(x, np.float64) for x in (*(node["experts"][k] for k in ("down", "up")),
                                                          node["router"]["rows"]))  # fmt: skip
    return [(down[slot], up[slot].T) for slot in slots], rows[[0, *(slots + 1)]]


def rungs_of(params, name):
    return [as_lists(params["ladders"][f"rung_{name}_{n}"]) for n in (1, 2)]


def item(params, states, row):
    """The paper's vector of an item: one matrix times the concatenated last states, and a bias."""
    last = [
        reference.ladder([np.asarray(layer[row], np.float64) for layer in states.values[name]], rungs_of(params, name))
        for name in NAMES
    ]
    matrix = np.concatenate([np.asarray(params[f"project_{name}"], np.float64) for name in NAMES], axis=1)
    return matrix @ np.concatenate(last) + np.asarray(params["fusion"]["bias"], np.float64)


def check_items(module, params, states):
    result = applied(module, params, states)
    expected = [item(params, states, row) for row in range(len(result.vector))]
    # float32 against float64 over two rungs of width 8
    np.testing.assert_allclose(result.vector, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def module():
    return encoder()


@pytest.fixture(scope="module")
def states():
    return hidden(NAMES, 5, 3, WIDTH, complete=True)


@pytest.fixture(scope="module")
def first(module, states):
    """Parameters as a run begins with them."""
    return jax.device_get(begun(module, states))


@pytest.mark.parametrize("used", [[0], [1, 3], [0, 1, 2, 3]], ids=str)
def test_item_vectors_equal_the_papers_equations(module, states, first, used):
    check_items(module, randomised(first, used), states)


def test_they_do_after_growth_and_pruning_too(module, states, first):
    params = randomised(first, [0])
    rng = np.random.default_rng(0)
    for window in range(3):
        params, *_ = growth.expand(params, window, rng)
        check_items(module, params, states)
    params, pruned = growth.prune(params, dict.fromkeys(growth.rungs(params), np.array([4, 1, 3, 2.0])), 0.2)
    assert {one.slot for one in pruned} == {1}
    check_items(module, params, states)


def test_a_model_begins_with_the_first_slots_and_nothing_in_the_others(first):
    experts = encoder(experts=2)
    node = begun(experts, hidden(NAMES, 5, 3, WIDTH))["ladders"]["rung_text_1"]
    assert node["experts"]["active"].tolist() == node["experts"]["trainable"].tolist() == [1, 1, 0, 0]
    assert node["router"]["active"].tolist() == [1, 1, 1, 0, 0]
    assert node["experts"]["born"].tolist() == [0, 0, growth.UNUSED, growth.UNUSED]
    for leaf in (node["experts"]["down"][2:], node["experts"]["up"][2:], node["router"]["rows"][3:]):
        assert not leaf.any()
    assert growth.counts(first) == growth.counts(jax.device_get(begun(encoder(capacity=1), hidden(NAMES, 5, 3, WIDTH))))


def test_parameters_at_the_papers_sizes():
    made = base("x")
    made.model.system, made.model.width, made.fusion.kind = "xsmoe", 128, "add"
    made.modalities = {name: modality(template="{title}") for name in NAMES}
    module = build(resolve(made), CatalogueShape(6, dict.fromkeys(NAMES, StateShape(768, 3))))
    states = jax.eval_shape(lambda: hidden(NAMES, 1, 3, 768))
    items = jax.eval_shape(lambda s: module.init(jax.random.key(0), s), states)["params"]
    masks = {"active": 1, "trainable": 1}
    items = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), items)
    for node in items["ladders"].values():  # shapes know no values: one expert is in use
        for key, used in masks.items():
            node["experts"][key][:used] = node["router"][key][: used + 1] = 1
    history = jnp.zeros((1, 10, 128)), jnp.ones((1, 10), bool)
    sasrec = SasRec(SasRecConfig(width=128))
    users = jax.eval_shape(lambda: sasrec.init(jax.random.key(0), *history, train=False))["params"]
    params = {"items": items, "users": users}
    assert growth.counts(params) == (993_152, 993_152)
    grown, *_ = growth.expand(params, 1, np.random.default_rng(0))
    assert growth.counts(grown) == (993_152 + 4 * 768, 993_152 + 4 * (98_304 + 768))


def test_an_absent_modality_has_no_part_in_the_vector(module, states, first):
    params = randomised(first, [0, 2])
    present = {"image": jnp.array([True, False, True, True, True]), "text": jnp.ones(5, bool)}
    result = applied(module, params, HiddenStates(states.values, present))
    alone = {**params, "project_image": np.zeros_like(params["project_image"])}
    np.testing.assert_allclose(result.vector[1], item(alone, states, 1), rtol=1e-4, atol=1e-5)  # as above
    assert result.weights[1, 0] == 0
    assert result.weights[1, 1] == pytest.approx(1, abs=1e-6)  # a rounded quotient
    assert (np.delete(np.asarray(result.weights), 1, axis=0) > 0).all()


def plain_rung(x, backbone, experts):
    """Equation 4 for all items at once, for JAX to differentiate."""
    gates = router(x, experts)
    out = gates[:, :1] * backbone
    for slot in range(experts.down.shape[0]):
        added = jax.nn.gelu(x @ experts.down[slot].T, approximate=False) @ experts.up[slot]
        out = out + gates[:, slot + 1, None] * (x + added)
    return out


@partial(jax.jit, static_argnums=(0, 1))
def gradients(function, last, weight, x, backbone, experts, kernel):
    def loss(arguments):
        x, backbone, experts, kernel = arguments
        return jnp.sum(weight * function(x, backbone, experts, *[kernel] * last))

    return jax.grad(loss)((x, backbone, experts, kernel))


@pytest.mark.parametrize(("last", "trained", "frozen"), [(False, 1, False), (False, 1, True), (True, 2, False),
                                                         (True, 1, True), (True, 4, False)])  # fmt: skip
def test_derivatives_of_a_rung_are_those_of_its_equation(last, trained, frozen):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(0.5 * rng.standard_normal(shape), jnp.float32)

    active, trainable = jnp.array([1.0, 1, 0, 1, 1]), jnp.array([0.0, 0, 1, 0])
    trainable = jnp.ones(4) if trained == 4 else trainable.at[3].set(trained - 1.0)
    x, backbone, kernel = draw(7, WIDTH), draw(7, WIDTH), draw(OUT, WIDTH)
    experts = Experts(draw(4, 3, WIDTH), draw(4, 3, WIDTH), draw(5, WIDTH), active, trainable)
    weight = draw(7, OUT if last else WIDTH)

    def ours(x, backbone, experts, *kernel):
        return (last_rung if last else rung)(x, backbone, experts, *kernel, trained, frozen)

    def theirs(x, backbone, experts, *kernel):
        out = plain_rung(x, backbone, experts)
        return out @ kernel[0].T if last else out

    arguments = weight, x, backbone, experts, kernel
    mine, plain = gradients(ours, last, *arguments), gradients(theirs, last, *arguments)
    chosen = trainable[:, None, None] > 0
    expected = plain[2]._replace(down=jnp.where(chosen, plain[2].down, 0), up=jnp.where(chosen, plain[2].up, 0))
    found = mine[2]._replace(active=expected.active, trainable=expected.trainable)
    assert not np.any([mine[2].active.any(), mine[2].trainable.any(), frozen and mine[0].any()])
    pairs = [(mine[1], plain[1]), *zip(found, expected, strict=True), (mine[3], plain[3])]
    for a, b in pairs if frozen else [*pairs, (mine[0], plain[0])]:
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)  # other order of sums


@partial(jax.jit, static_argnums=(0, 2))
def kept(module, params, collection, states, heads):
    return module.apply({"params": params}, states, heads, mutable=[collection])[1][collection]


@pytest.mark.parametrize("items", [5, SAMPLED * 2 + 7])
def test_utilisation_is_the_share_of_the_gated_outputs_norm(module, first, items):
    params = randomised(first, [0, 2, 3])
    present = np.random.default_rng(1).random(items) < 0.6
    states = hidden(NAMES, items, 3, WIDTH, {"text": present})
    ladders = Ladders(module.config.ladders)
    heads = {name: params[f"project_{name}"] for name in NAMES}
    metrics = kept(ladders, params["ladders"], "metrics", states, heads)
    norms = kept(ladders, params["ladders"], "norms", states, heads)
    for name in NAMES:
        inputs = [np.asarray(x, np.float64) for x in states.values[name][0]]
        there = [row for row in range(items) if name != "text" or present[row]]
        sampled = [row for row in range(items)[:: max(items // SAMPLED, 1)][:SAMPLED] if row in there]
        for n, (experts, rows) in enumerate(rungs_of(params, name), start=1):
            shares = reference.utilisation([inputs[row] for row in sampled], experts, rows)
            (share,) = metrics[f"utilisation/{name}_{n}"]
            np.testing.assert_allclose(share, np.insert(shares, 1, 0), rtol=1e-4)  # float32 over two rungs
            ((sums, count),) = norms[f"{name}_{n}"]
            assert count == len(there)
            shares = reference.utilisation([inputs[row] for row in there], experts, rows)
            np.testing.assert_allclose(sums / sums.sum(), np.insert(shares, 1, 0), rtol=1e-4)  # as above
            if n == 1:
                inputs = [
                    reference.rung(x, np.asarray(h, np.float64), experts, rows)
                    for x, h in zip(inputs, states.values[name][1], strict=True)
                ]


def config(names=NAMES, **model):
    made = base("x")
    made.model.system, made.fusion.kind = "xsmoe", "add"
    made.modalities = {name: modality(template="{title}") for name in names}
    made.model.update(model)
    return resolve(made)


def test_ladders_have_a_rung_for_each_layer_after_the_first():
    made = config(("text",), width=4, bottleneck=3, experts=2, capacity=3)
    shapes = {"text": StateShape(6, 4)}
    params = begun(build(made, CatalogueShape(6, shapes)), hidden(["text"], 5, 4, 6))
    assert {name: rung.capacity for name, rung in growth.rungs(params).items()} == {f"text_{n}": 3 for n in (1, 2, 3)}
    assert params["ladders"]["rung_text_3"]["experts"]["down"].shape == (3, 3, 6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config(experts=3, capacity=2), "model.experts=3: must lie in 1 to model.capacity=2"),
        (lambda: config(experts=0), "model.experts=0: must lie in 1 to"),
        (lambda: config(cross_source="none"), "model.cross_source='none' means nothing to model.system='xsmoe'"),
        (lambda: LadderConfig((TowerSpec("text", 4, 1),)), "modalities.text: a ladder begins at the first"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()
