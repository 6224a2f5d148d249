"""Experts over the devices of a mesh compute what they compute on one device."""

from __future__ import annotations

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mmrec_jax.errors import ConfigError
from mmrec_jax.fusion import FusionConfig, fuse_modalities
from mmrec_jax.parallel import ParallelConfig, make_mesh
from mmrec_jax.types import LOSSES, METRICS, TRAINING
from tests.parallel.runs import ONE, RELATIVE, check_gradients, shop_run, take_steps

ROWS, WIDTH, EXPERTS = 21, 6, 8  # eight devices do not divide the rows
NAMES = ("image", "text")


def config(**values):
    return FusionConfig(**{"kind": "experts", "experts": EXPERTS, "top_k": 2, "capacity_factor": 9.0, **values})


@pytest.fixture(scope="module")
def data():
    """Parameters, vectors and presence."""
    rng = np.random.default_rng(0)
    vectors = {name: jnp.asarray(rng.standard_normal((ROWS, WIDTH)), jnp.float32) for name in NAMES}
    present = jnp.asarray(rng.random((ROWS, 2)) > 0.2)
    shapes = jax.eval_shape(lambda: fuse_modalities(config()).init(jax.random.key(0), vectors, present))["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) / 2, jnp.float32), shapes)
    return params, vectors, present


def function(made):
    """Parameters, vectors and presence -> a loss with metrics and vectors, and its gradients."""

    def loss(params, vectors, present):
        result, kept = fuse_modalities(made).apply(
            {"params": params}, vectors, present, rngs={TRAINING: jax.random.key(3)}, mutable=[LOSSES, METRICS]
        )
        added = sum(map(jnp.sum, jax.tree.leaves(kept[LOSSES])))
        return jnp.sum(jnp.sin(result.vector)) + added, (result, kept[METRICS])

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def mesh_of(sizes):
    return make_mesh(ParallelConfig(*sizes), jax.devices()[: int(np.prod(sizes))])


def placed(mesh, data):
    """Experts over their axis, everything else on every device."""
    params, vectors, present = data

    def place(path, leaf):
        spec = P("expert") if path[0].key.startswith("experts_") else P()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    params = jax.tree_util.tree_map_with_path(place, params)
    return params, *jax.device_put((vectors, present), NamedSharding(mesh, P()))


def on_mesh(sizes, made, data):
    mesh = mesh_of(sizes)
    with jax.set_mesh(mesh):
        return function(made)(*placed(mesh, data))


SIZES = [(1, 1, 8), (2, 2, 2), (8, 1, 1)]


@pytest.fixture(scope="module")
def one(data):
    """Made on one device, by whether there is room for all."""
    return {factor: function(config(capacity_factor=factor, groups=8))(*data) for factor in (9.0, 0.5)}


@pytest.mark.parametrize("factor", [9.0, 0.5])
@pytest.mark.parametrize("sizes", SIZES)
def test_vectors_losses_metrics_and_gradients_agree(data, one, sizes, factor):
    (loss, (result, metrics)), gradients = one[factor]
    assert (sum(int(metrics[f"choices_dropped_{name}"][0]) for name in NAMES) > 0) == (factor < 1)
    found = on_mesh(sizes, config(capacity_factor=factor, groups=8), data)
    # The bound; sums over devices add in another order.
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, found, ((loss, (result, metrics)), gradients))
    held = found[1][0]["experts_text"]["kernel"]
    assert held.addressable_shards[0].data.shape[0] == EXPERTS // sizes[2]


def test_without_groups_each_device_has_its_own_and_nothing_else_changes(data, one):
    (_, (result, _)), _ = one[9.0]
    found = on_mesh((2, 1, 4), config(), data)
    np.testing.assert_allclose(found[0][1][0].vector, result.vector, rtol=1e-5, atol=1e-6)


def test_one_exchange_takes_all_modalities_there_and_one_back(data):
    mesh = mesh_of((2, 1, 4))
    with jax.set_mesh(mesh):
        text = function(config()).lower(*placed(mesh, data)).compile().as_text()
    assert len(re.findall(r"%all-to-all[.\d]* = ", text)) == 4  # two forward, two backward
    summed = [line for line in text.splitlines() if re.search(r" all-(gather|reduce)\(", line)]
    # A device knows its own experts alone: their gradients are summed over `data`, and they are gathered nowhere.
    assert any(f"[{EXPERTS // 4},{WIDTH},{WIDTH}]" in line for line in summed)
    assert not any(f"[{EXPERTS},{WIDTH},{WIDTH}]" in line for line in summed)


@pytest.mark.parametrize(
    ("sizes", "values", "told"),
    [
        ((4, 2, 1), {"groups": 12}, "fusion.groups=12: the mesh has 8 devices"),
        ((1, 1, 8), {"experts": 6}, "fusion.experts=6 do not divide over the 8 devices along parallel.expert"),
    ],
)
def test_what_cannot_be_divided_is_refused(data, sizes, values, told):
    keys = {"params": jax.random.key(0), TRAINING: jax.random.key(1)}
    with jax.set_mesh(mesh_of(sizes)), pytest.raises(ConfigError, match=told):
        jax.eval_shape(lambda: fuse_modalities(config(**values)).init(keys, *data[1:]))


@pytest.mark.long
def test_steps_of_a_run_agree_and_each_device_holds_its_own_experts(shop, workdir):
    values = {"training__epochs": 2, "modalities__words__layers": (0, 2), "fusion__kind": "experts"}
    values |= {"fusion__top_k": 2, "fusion__groups": 8, "fusion__capacity_factor": 1.0}
    expected = take_steps(shop_run(shop, workdir, ONE, **values), 3)
    assert expected.metrics[0]["choices_dropped_words"] > 0
    run = shop_run(shop, workdir, (2, 1, 4), **values)
    found = take_steps(run, 3)
    for one, many in zip(expected.metrics, found.metrics, strict=True):
        assert many == pytest.approx(one, rel=RELATIVE)
    check_gradients(found.gradients, expected.gradients)
    path = "items/fusion/experts_words/kernel"
    assert run.placement.parameter(path, (4, 8, 8)).spec == P("expert")
