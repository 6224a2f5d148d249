"""Costs read from the texts of compiled programs, against figures worked out by hand.

The texts in `texts/` were made by JAX 0.10.2 for 16 v5e chips (4 x 4) and for 8 H100 of one host:
- `*_loop`: value and gradient of sum(y**2), y being seven steps of y = tanh(y @ w), over a batch that is split over all
  chips; w is [1024, 1024], and so is each chip's part of the batch, in bfloat16.
- `*_messages`: a shard_map over (data, model = 2): rows looked up in an int8 table (all_gather of 64 ids a chip,
  psum_scatter of rows of 256 floats), an all_to_all and a ppermute along data, and a loop of four products
  [16, 256] x [256, 64].
- `v5e_batched`: 8 x 12 products [128, 64] x [64, 256] a chip.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from mmrec_jax.planning.collectives import Collective, group_members, seconds
from mmrec_jax.planning.compile import compile_program
from mmrec_jax.planning.costs import costs, trip_count
from mmrec_jax.planning.hlo import read
from mmrec_jax.planning.topology import parse_topology

TPU, GPU = parse_topology("v5e:4x4"), parse_topology("h100:1x1x8")
TEXTS = {"v5e_loop": TPU, "h100_loop": GPU, "v5e_messages": TPU, "h100_messages": GPU, "v5e_batched": TPU}
FLOPS = {
    # One product forward and two backward, seven times.
    "v5e_loop": 7 * 3 * 2 * 1024**3,
    "h100_loop": 7 * 3 * 2 * 1024**3,
    "v5e_messages": 4 * 2 * 16 * 256 * 64,
    "h100_messages": 4 * 2 * 16 * 256 * 64,
    "v5e_batched": 8 * 12 * 2 * 128 * 64 * 256,
}


@pytest.mark.parametrize("name", FLOPS)
def test_products_count_as_often_as_their_loop_runs(saved, name):
    found = costs(saved(name), TEXTS[name])
    assert found.flops == FLOPS[name]
    assert found.unknown_loops == []


@pytest.mark.parametrize("name", ["v5e_loop", "h100_loop"])
def test_loops_without_a_count_in_their_text_are_followed_from_start_to_limit(saved, name):
    module = saved(name)
    loops = [i for i in module.entry if i.opcode == "while"]
    assert [trip_count(loop, module.entry, module) for loop in loops] == [7, 7]


def test_a_loop_that_ends_by_its_data_counts_once_and_is_named():
    one = parse_topology("cpu:1")

    def until(x, w):
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 1e3, lambda y: y @ w, x)

    square = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    found = compile_program("until", until, (square, square), one)
    assert found.costs.flops == 2 * 64**3
    assert len(found.costs.unknown_loops) == 1


def test_messages_on_a_tpu(saved):
    found = {(sent.kind, sent.bytes, sent.group) for sent in costs(saved("v5e_messages"), TPU).collectives}
    assert found == {
        # Messages this small the compiler sums, and takes each chip's part of the sum: 16 x 64 ids, as many rows.
        ("all-reduce", 16 * 64 * 4, 16),
        ("all-reduce", 16 * 64 * 256 * 4, 16),
        ("all-to-all", 64 * 256 * 2, 8),
        ("collective-permute", 64 * 256 * 2, 2),
    }


def test_messages_on_gpus_begin_and_end_but_count_once(saved):
    found = {(sent.kind, sent.bytes, sent.group) for sent in costs(saved("h100_messages"), GPU).collectives}
    assert found == {
        ("all-gather", 8 * 64 * 4, 8),
        ("reduce-scatter", 8 * 64 * 256 * 4, 8),
        ("all-to-all", 64 * 256 * 4, 4),
        ("collective-permute", 64 * 256 * 4, 2),
    }


def test_a_gradient_over_all_chips_is_one_message_of_its_size(saved):
    (sent,) = costs(saved("v5e_loop"), TPU).collectives
    # bfloat16 gradients of w, and the loss.
    assert (sent.kind, sent.bytes, sent.group) == ("all-reduce", 2 * 1024 * 1024 + 2, 16)


def test_arrays_in_fast_memory_are_not_traffic(saved):
    # Weights and batch in, gradients out, and some counters: all else of this small program stays on the chip.
    assert costs(saved("v5e_loop"), TPU).bytes == pytest.approx(3 * 2 * 1024 * 1024, rel=1e-3)
    assert costs(saved("h100_loop"), GPU).bytes > 20 * 2 * 1024 * 1024


def test_a_step_cannot_be_faster_than_its_products_or_its_traffic(saved):
    found = costs(saved("v5e_loop"), TPU)
    assert found.busy >= found.flops / TPU.chip.flops
    assert found.busy >= found.bytes / TPU.chip.bandwidth


def test_looked_up_rows_are_traffic_and_their_table_is_not():
    table = jax.ShapeDtypeStruct((100_000, 64), jnp.float32)
    rows = jax.ShapeDtypeStruct((32,), jnp.int32)
    found = compile_program(
        "look up", lambda t, r: t.at[r].get(mode="fill") * 2.0, (table, rows), parse_topology("cpu:1")
    )
    looked_up = 32 * 64 * 4
    assert 2 * looked_up <= found.costs.bytes < 10 * looked_up
    assert found.memory.arguments == 100_000 * 64 * 4 + 32 * 4


def test_products_agree_with_the_compiler_where_nothing_loops():
    left, right = jax.ShapeDtypeStruct((96, 200), jnp.float32), jax.ShapeDtypeStruct((200, 56), jnp.float32)
    found = compile_program("product", lambda x, y: x @ y, (left, right), parse_topology("cpu:1"))
    assert found.costs.flops == found.flops == 2 * 96 * 200 * 56


@pytest.mark.parametrize(
    ("text", "members"),
    [
        (", replica_groups={{0,2},{1,3}}, x", [0, 2]),
        (", replica_groups=[2,4]<=[8], x", [0, 1, 2, 3]),
        (", replica_groups=[4,2]<=[2,4]T(1,0), x", [0, 4]),
        (", replica_groups=mesh['data'=4,'model'=2] {'data'}, x", [0, 2, 4, 6]),
        (", replica_groups={}, x", [0, 1, 2, 3, 4, 5, 6, 7]),
        (", source_target_pairs={{0,2},{2,0}}, x", [0, 2]),
    ],
)
def test_groups_in_all_their_spellings(text, members):
    assert group_members(text, 8) == members


def test_messages_take_longer_between_hosts_than_inside_one():
    cluster = parse_topology("h100:1x8x8")
    inside, across = Collective("all-gather", 1e9, 8), Collective("all-gather", 1e9, 64, across=True)
    assert seconds(inside, cluster) == pytest.approx(1e9 * 7 / 8 / 450e9, rel=0.05)  # a few steps of latency
    assert seconds(across, cluster) == pytest.approx(1e9 * 63 / 64 * 7 / 8 / 400e9, rel=0.05)


def test_a_whole_axis_of_a_pod_is_a_ring_and_a_part_of_one_is_a_line():
    large = parse_topology("v5e:16x16")
    sent = Collective("all-gather", 1e9, 256)
    assert seconds(sent, large) == pytest.approx(1e9 / 200e9, rel=0.05)
    assert seconds(Collective("all-gather", 1e9, 16), TPU) == pytest.approx(1e9 * 15 / 16 / 100e9, rel=0.05)
    # Along one axis of two, half of the links are used.
    assert seconds(Collective("all-gather", 1e9, 16), large) == pytest.approx(1e9 * 15 / 16 / 100e9, rel=0.05)


BESIDE = """\
HloModule beside

%start (p: f32[4,64]) -> (f32[4,64], f32[64,64]) {
  %p = f32[4,64]{1,0} parameter(0)
  %gathered = f32[64,64]{1,0} all-gather(%p), replica_groups={}, dimensions={0}, CHAIN
  ROOT %pair = (f32[4,64]{1,0}, f32[64,64]{1,0}) tuple(%p, %gathered)
}

%step (q: f32[4,64]) -> f32[64,64] {
  %q = f32[4,64]{1,0} parameter(0)
  ROOT %gathering = f32[64,64]{1,0} all-gather(%q), replica_groups={}, dimensions={0}, CHAIN
}

ENTRY %main (x: f32[4,64]) -> f32[64,64] {
  %x = f32[4,64]{1,0} parameter(0)
  %begun = (f32[4,64]{1,0}, f32[64,64]{1,0}) fusion(%x), kind=kCustom, calls=%start
  ROOT %done = f32[64,64]{1,0} fusion(%x), kind=kCustom, calls=%step
}
"""


def test_a_message_beside_the_computing_stands_in_several_fusions_and_counts_once():
    (sent,) = costs(read(BESIDE.replace("CHAIN", 'frontend_attributes={chain_id="0"}')), TPU).collectives
    assert (sent.kind, sent.bytes, sent.times) == ("all-gather", 64 * 64 * 4, 1.0)


BRANCHES = """\
HloModule branches

%looks (p: f32[1024,1024]) -> f32[1024,1024] {
  %p = f32[1024,1024]{1,0} parameter(0)
  ROOT %negated = f32[1024,1024]{1,0} negate(%p)
}

%leaves (q: f32[1024,1024]) -> f32[1024,1024] {
  ROOT %q = f32[1024,1024]{1,0} parameter(0)
}

ENTRY %main (is_bad: pred[], x: f32[1024,1024]) -> f32[1024,1024] {
  %is_bad = pred[] parameter(0)
  %x = f32[1024,1024]{1,0} parameter(1)
  ROOT %either = f32[1024,1024]{1,0} conditional(%is_bad, %x, %x), true_computation=%looks, false_computation=%leaves
}
"""


def test_what_is_looked_into_only_after_a_loss_that_is_not_finite_costs_a_step_nothing():
    assert costs(read(BRANCHES), TPU).bytes == 0
