"""A training step is the same on one device and on meshes of eight."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax import experiment
from mmrec_jax.objectives import softmax_loss
from mmrec_jax.parallel import ParallelConfig, make_mesh
from mmrec_jax.sharded_softmax import row_losses
from mmrec_jax.shards import Shards
from mmrec_jax.share import WHOLE
from mmrec_jax.store.table import StateTable
from tests.parallel.runs import CANCELLED, MESHES, ONE, RELATIVE, SMALL, SOFTMAX, check_gradients, shop_run, take_steps


@functools.cache
def on_one_device(shop, workdir, **values):
    return take_steps(shop_run(shop, workdir, ONE, **values), 4)


def compare(shop, workdir, meshes, bound=RELATIVE, **values):
    expected = on_one_device(shop, workdir, **{k: v for k, v in values.items() if not k.startswith("parallel__")})
    for sizes in meshes:
        found = take_steps(shop_run(shop, workdir, sizes, **values), 4)
        for number, (one, many) in enumerate(zip(expected.metrics, found.metrics, strict=True)):
            assert many == pytest.approx(one, rel=RELATIVE), (sizes, number)
        check_gradients(found.gradients, expected.gradients, bound)
        # Adam divides by the root of its second moment, which for gradients near zero makes much of their rounding.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-5), found.params, expected.params)


def test_loss_gradients_and_metrics_agree_in_every_shape_of_the_mesh(shop, workdir):
    compare(shop, workdir, MESHES, **SMALL)


@pytest.mark.long
def test_sampled_negatives_agree(shop, workdir):
    values = {"objective__kind": "gbce", "objective__negatives": 5, "user__kind": "gru"}
    compare(f"{shop},words", workdir, [(4, 2, 1)], **SMALL, **values)


@pytest.mark.long
def test_a_table_of_ids_is_split_by_rows_whatever_their_number(shop, workdir):
    values = {**SMALL, "model__add_ids": True}
    run = shop_run(shop, workdir, (4, 2, 1), **values)
    rows = run.data.num_items + 1
    assert rows % 8
    fresh = run.fresh(jax.random.key(0))
    placed = run.placement.state({"params": fresh, "mu": fresh})
    for tree in placed.values():
        table = tree["items"]["ids"]["embedding"]
        assert table.shape[0] == run.shards.filled(rows)
        assert {shard.data.shape[0] for shard in table.addressable_shards} == {table.shape[0] // 8}
    jax.tree.map(np.testing.assert_array_equal, run.placement.readable(placed)["params"], fresh)
    compare(shop, workdir, [(4, 2, 1)], **values)


def test_full_softmax_agrees(shop, workdir):
    compare(f"{shop},words", workdir, [(2, 2, 2)], CANCELLED, **SOFTMAX)


@pytest.mark.parametrize("sizes", MESHES)
def test_a_full_softmax_leaves_the_catalogue_where_it_is(sizes):
    rows, width, steps, length = 4096, 24, 48, 4
    shards = Shards(make_mesh(ParallelConfig(*sizes)))
    random = np.random.default_rng(0)
    users = random.standard_normal((steps, width)).astype(np.float32)
    vectors = random.standard_normal((rows, width)).astype(np.float32)
    allowed = (np.arange(rows) > 0) & (np.arange(rows) < rows - 3)
    targets = random.integers(1, rows - 3, steps).astype(np.int32)
    seen = random.integers(0, rows - 3, (16, length)).astype(np.int32)
    per, groups = steps // shards.batch_parts, 16 // shards.batch_parts
    local = random.integers(0, groups, steps).astype(np.int32)
    of_all = local + np.arange(steps) // per * groups

    def dense(users, vectors):
        negative = np.broadcast_to(allowed, (16, rows)).copy()
        negative[np.arange(16)[:, None], seen] = False
        return jnp.sum(softmax_loss(users @ vectors.T, targets, negative[of_all]) ** 2)

    def by_rows(users, vectors):
        return jnp.sum(row_losses(shards, users, vectors, jnp.asarray(allowed), targets, local, seen) ** 2)

    places = shards.split(shards.batch, steps), shards.split(shards.rows, rows)
    compiled = jax.jit(jax.value_and_grad(by_rows, (0, 1)), in_shardings=places).lower(users, vectors).compile()
    expected = jax.value_and_grad(dense, (0, 1))(users, vectors)
    found = compiled(*map(jax.device_put, (users, vectors), places))
    np.testing.assert_allclose(found[0], expected[0], rtol=RELATIVE)
    for one, many in zip(expected[1], found[1], strict=True):
        # An entry is a sum of many terms, some as large as the largest entry.
        np.testing.assert_allclose(many, one, rtol=1e-4, atol=2e-6 * np.abs(one).max())
    for kind, shapes in collectives(compiled.as_text()):
        assert all(int(np.prod(shape)) <= steps * width for shape in shapes), (kind, shapes)


@pytest.mark.long
def test_vectors_sent_as_bfloat16_change_a_step_by_their_rounding(shop, workdir):
    values = {**SMALL, "user__dropout": 0.0}
    expected, found = (
        take_steps(shop_run(shop, workdir, (8, 1, 1), **values, parallel__messages=dtype), 1).metrics[0]
        for dtype in ("float32", "bfloat16")
    )
    # bfloat16 has eight bits: each entry of a vector is off by up to 2^-9, and those of a dot product independently.
    assert found["loss"] == pytest.approx(expected["loss"], rel=2**-9)
    assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=2**-6)
    assert found["loss"] != expected["loss"]


@pytest.mark.parametrize("encode", ["equal", "own"])
def test_local_negatives_are_those_of_the_users_on_the_same_device(shop, workdir, encode):
    values = {**SMALL, "user__dropout": 0.0}
    sizes = (8, 1, 1) if encode == "own" else (4, 1, 2)
    run = shop_run(shop, workdir, sizes, parallel__negatives="local", parallel__encode=encode, **values)
    one = shop_run(shop, workdir, ONE, **values)
    stream = experiment.training_stream(one.config, one.data)
    frozen = jax.device_put(one.frozen)
    params = jax.jit(one.task.init)(jax.random.key(0), frozen)

    @jax.jit
    def summed(params, batch):
        inputs = one.task.inputs(frozen, batch, jax.random.key(0))
        steps = jnp.sum(inputs.read > 0)
        return one.task.loss(params, frozen, inputs, jax.random.key(0))[0] * steps, steps

    rows = stream._chosen(0).reshape(sizes[0], -1)
    # Each padded up to a whole batch, of which padding is no part.
    batches = [stream._assemble(stream.rows.chosen(part), (48, 64), WHOLE) for part in rows]
    parts = [jax.value_and_grad(summed, has_aux=True)(params, batch) for batch in batches]
    steps = sum(int(steps) for (_, steps), _ in parts)
    expected = sum(float(loss) for (loss, _), _ in parts) / steps
    gradients = jax.tree.map(lambda *each: sum(each) / steps, *[gradient for _, gradient in parts])

    split = experiment.training_stream(run.config, run.data, shards=run.shards)
    placed = run.placement.frozen(run.frozen), run.placement.batch(next(split))
    params = run.placement.state(jax.device_get(params))

    @jax.jit
    def sharded(params, frozen, batch):
        inputs = run.task.inputs(frozen, batch, jax.random.key(0))
        return run.task.loss(params, frozen, inputs, jax.random.key(0))[0]

    differentiated = jax.jit(jax.value_and_grad(sharded)).lower(params, *placed).compile()
    loss, found = differentiated(params, *placed)
    assert float(loss) == pytest.approx(expected, rel=RELATIVE)
    check_gradients([found], [gradients], CANCELLED)  # those of one device are sums over as many batches
    # Vectors go to those who asked for them, and not to everyone.
    width = run.config.model.width
    moved = collectives(differentiated.as_text())
    assert any(kind == "all-to-all" and shape[-1:] == [width] for kind, shapes in moved for shape in shapes)
    assert not any(kind == "all-gather" and shape[-1:] == [width] for kind, shapes in moved for shape in shapes)
    stream.close()
    split.close()


COLLECTIVE = re.compile(r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def collectives(text: str) -> list[tuple[str, list[list[int]]]]:
    """Kind and result shapes of each collective in a compiled program."""
    return [
        (kind, [[int(n) for n in dims.split(",") if n] for dims in re.findall(r"\w+\[([\d,]*)\]", result)])
        for result, kind in COLLECTIVE.findall(text)
    ]


@pytest.mark.parametrize("sizes", MESHES)
def test_of_the_store_only_the_batch_s_rows_move(sizes):
    rows, width, items = 4096, 24, 48
    shards = Shards(make_mesh(ParallelConfig(*sizes)))
    by_rows, by_batch = shards.split(shards.rows, rows), shards.split(shards.batch, items)

    def of(shape, dtype, sharding):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    table = StateTable(
        {"words": (of((rows, width), jnp.int8, by_rows),) * 2},
        {"words": (of((rows,), jnp.float32, by_rows),) * 2},
        {"words": of((rows,), jnp.bool_, by_rows)},
        shards=shards,
    )
    compiled = jax.jit(lambda table, ids: table.rows(ids)).lower(table, of((items,), jnp.int32, by_batch)).compile()
    found = collectives(compiled.as_text())
    assert {kind for kind, _ in found} >= {"all-gather", "reduce-scatter"}
    for kind, shapes in found:
        for shape in shapes:
            assert shape[0] <= items, (kind, shape)
            assert int(np.prod(shape)) <= items * width, (kind, shape)
    # And each device keeps its own share of the table: nothing of it is copied.
    assert compiled.memory_analysis().temp_size_in_bytes < rows // 8 * width
