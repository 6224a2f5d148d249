"""Backbones in the step over a mesh: the numbers of one device, and each device encodes its own rows."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mmrec_jax.adapters.embedded import join
from tests.parallel.runs import ONE, shop_run, take_steps

METHODS = {"words": {"kind": "lora", "rank": 2, "chunk": 2}}
VALUES = {"training__epochs": 2, "modalities__words__layers": (0, 2)}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def test_steps_with_a_live_backbone_in_lots_agree(shop, workdir):
    expected = take_steps(shop_run(shop, workdir, ONE, METHODS, **VALUES), 3)
    found = take_steps(shop_run(shop, workdir, (4, 2, 1), METHODS, **VALUES), 3)
    for number, (one, many) in enumerate(zip(expected.metrics, found.metrics, strict=True)):
        assert many == pytest.approx(one, rel=1e-5), number  # the bound
    # Adam's division, see check_step.py
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-5), found.params, expected.params)


def test_no_row_of_a_lot_leaves_its_device(shop, workdir):
    run = shop_run(shop, workdir, (8, 1, 1), METHODS, **VALUES)
    part = run.live.backbones["words"]
    inputs = run.live_catalogue.inputs["words"]
    layout = part.layout(inputs, run.shards.batch_parts)
    rows = np.tile(np.arange(1, len(inputs.present), dtype=np.int32), 4)
    batch = layout.batch(rows, layout.sizes(layout.needed(rows)))
    (block,) = [block for block in batch.parts if jax.tree.leaves(block)[0].shape[0] > 2 * 8][:1]
    params = run.placement.frozen(run.frozen).live.backbones["words"]
    trained = run.placement.state(part.init(jax.random.key(0), part.start))

    def encoded(trained, params, block):
        return part._encoded(join(trained, params), block, None, run.shards)

    text = jax.jit(encoded).lower(trained, params, run.placement.batch(block)).compile().as_text()
    assert "while" in text  # in lots
    assert not [name for name in ("all-gather", "all-to-all", "all-reduce", "collective-permute") if name in text]
