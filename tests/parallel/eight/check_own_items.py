"""Devices that encode those items of a batch whose states they have give what one device gives, and move no states."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from mmrec_jax import experiment
from mmrec_jax.errors import ConfigError
from mmrec_jax.parallel import ParallelConfig, make_mesh
from mmrec_jax.planning.costs import costs
from mmrec_jax.planning.hlo import read
from mmrec_jax.planning.topology import parse_topology
from mmrec_jax.shards import Shards
from mmrec_jax.store.table import StateTable
from tests.parallel.eight.check_step import compare
from tests.parallel.runs import MESHES, ONE, RELATIVE, SHARED, SMALL, check_gradients, measured, shop_run


def test_loss_gradients_and_metrics_agree_in_every_shape_of_the_mesh(shop, workdir):
    compare(shop, workdir, MESHES, **SMALL, parallel__encode="own")


@pytest.mark.long
def test_devices_with_the_same_rows_share_their_items_and_agree(shop, workdir):
    expected = measured(shop_run(shop, workdir, ONE, **SMALL))
    found = measured(shop_run(shop, workdir, (2, 4, 1), **SMALL, parallel__encode="own", parallel__rules=SHARED))
    for one, many in zip(expected["steps"], found["steps"], strict=True):
        assert many == pytest.approx(one, rel=RELATIVE)
    check_gradients(found["gradients"], expected["gradients"])
    assert found["test"] == pytest.approx(expected["test"], rel=RELATIVE)
    assert found["users"] == expected["users"]


@pytest.mark.parametrize(("sizes", "rules"), [((4, 2, 1), ()), ((4, 2, 1), SHARED)])
def test_items_lie_with_the_devices_that_have_them(sizes, rules, shop, workdir):
    run = shop_run(shop, workdir, sizes, **SMALL, parallel__encode="own", parallel__rules=rules)
    stream = experiment.training_stream(run.config, run.data, shards=run.shards)
    plain = experiment.training_stream(run.config, run.data)
    rows = run.shards.rows_of_owner(run.data.num_items + 1)
    for _ in range(3):
        batch, expected = next(stream), next(plain)
        parts = batch.items.reshape(4, -1)
        for part, items in enumerate(parts):
            held = items[items > 0]
            assert set(held // rows) <= {part}
            assert sorted(held) == list(held)
        # The same events, whatever their items' places are.
        assert (batch.items[batch.positions] == expected.items[expected.positions]).all()
        assert dict(zip(batch.items, batch.counts, strict=True)) | {0: 0} == dict(
            zip(expected.items, expected.counts, strict=True)
        ) | {0: 0}
    stream.close()
    plain.close()


def test_a_batch_over_rows_of_other_devices_is_refused():
    with pytest.raises(ConfigError, match=r"parallel\.encode='own'"):
        ParallelConfig(encode="own", rules=(("rows", "model"),))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (4, 2, 1)])
def test_states_move_only_among_the_devices_of_one_part(sizes):
    rows, width, items = 4096, 24, 48
    shards = Shards(make_mesh(ParallelConfig(*sizes)), encode="own")

    def of(shape, dtype, axes):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=shards.split(axes, shape[0]))

    table = StateTable(
        {"words": (of((rows, width), jnp.float32, shards.rows),)},
        {},
        {"words": of((rows,), jnp.bool_, shards.rows)},
        shards=shards,
    )
    ids = of((items,), jnp.int32, shards.batch)
    compiled = jax.jit(lambda table, ids: table.rows(ids, own=True)).lower(table, ids).compile()
    found = costs(read(compiled.as_text()), parse_topology("cpu:8")).collectives
    sent = [message for message in found if message.group > 1]
    assert {message.kind for message in sent} == (set() if sizes == (8, 1, 1) else {"all-reduce"})
    assert all(message.group == 2 and message.bytes <= items // sizes[0] * width * 4 for message in sent)
