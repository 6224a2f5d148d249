"""Rows of other devices, asked for one by one, against indexing the whole."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mmrec_jax.parallel.config import ParallelConfig
from mmrec_jax.parallel.mesh import make_mesh
from mmrec_jax.row_exchange import message_rows, rows_of_others

ROWS, WIDTH, NEEDED = 24, 5, 40
AXES = ("data", "model")


def wanted(random, highest: int) -> tuple[np.ndarray, np.ndarray]:
    """For each device rows of the whole, ascending, row 0 among them, with zeros at the end; and which are real."""
    places = np.zeros((8, NEEDED), np.int32)
    for own in places:
        drawn = np.unique(np.append(random.integers(0, highest, random.integers(5, NEEDED)), 0))
        own[: len(drawn)] = drawn
    return places, np.concatenate([np.ones((8, 1), bool), places[:, 1:] > places[:, :-1]], axis=1)


@pytest.mark.parametrize("highest", [8 * ROWS, ROWS], ids=["of everyone", "all of one"])
@pytest.mark.parametrize("most", [4, 8, 24])
def test_each_device_gets_what_it_asks_for_and_gradients_go_back(most, highest):
    random = np.random.default_rng(most)
    table = random.normal(size=(8 * ROWS, WIDTH)).astype(np.float32)
    weights = random.normal(size=(8, NEEDED, WIDTH)).astype(np.float32)
    places, real = wanted(random, highest)
    mesh = make_mesh(ParallelConfig(4, 2, 1))

    def found(table, places):
        split = PartitionSpec(AXES)

        def own(table, places):
            return rows_of_others(table, places[0], AXES, most)[None]

        return jax.shard_map(own, mesh=mesh, in_specs=(split, split), out_specs=split)(table, places)

    def expected(table, places):
        return jnp.where(real[..., None], table[places], 0)

    def weighted(rows):
        return lambda table: jnp.sum(jnp.sin(rows(table, places)) * weights)

    np.testing.assert_array_equal(jax.jit(found)(table, places), expected(table, places))
    # Sums of up to eight gradients in another order.
    np.testing.assert_allclose(
        jax.jit(jax.grad(weighted(found)))(table), jax.grad(weighted(expected))(jnp.asarray(table)), atol=1e-5
    )


def test_a_message_holds_what_chance_gives_and_never_more_than_there_is():
    assert message_rows(5632, 256, 5632) == 48  # 22 and four times their root, in eights
    assert message_rows(640, 8, 60) == 60
