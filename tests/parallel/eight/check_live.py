"""Backbones in the step over a mesh, and the extraction of hidden states over its devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mmrec_jax.config import resolve
from mmrec_jax.modes.run import Run, terminal
from mmrec_jax.training.trees import host_copy, named_leaves
from tests.parallel.runs import CANCELLED, LORA, RELATIVE, check_gradients, live_run, measured
from tests.tiny_config import get_config


@pytest.mark.parametrize(
    ("sizes", "rules", "settings"),
    [
        ((4, 2, 1), (), LORA),  # tensor-parallel
        pytest.param((8, 1, 1), (), {**LORA, "remat": True, "scan": True}, marks=pytest.mark.long),
        # Fully sharded, the trained weights and their moments too.
        pytest.param((8, 1, 1), (("embed", "data"),), {"kind": "full"}, marks=pytest.mark.long),
    ],
)
def test_steps_and_evaluation_with_a_backbone_over_the_mesh_agree(shop, tmp_path, sizes, rules, settings):
    expected = measured(live_run(shop, tmp_path, (1, 1, 1), **settings))
    run = live_run(shop, tmp_path, sizes, rules, **settings)
    found = measured(run)
    for one, many in zip(expected["steps"], found["steps"], strict=True):
        assert many == pytest.approx(one, rel=RELATIVE)
    check_gradients(found["gradients"], expected["gradients"], CANCELLED)
    assert found["test"] == pytest.approx(expected["test"], rel=RELATIVE)
    frozen = run.placement.frozen(run.frozen)
    weights = named_leaves(frozen.live.backbones)
    trained = host_copy(jax.jit(run.task.init)(jax.random.key(0), frozen))
    state = named_leaves(run.placement.state({"mu": trained, "params": trained}))
    split = {name: leaf for name, leaf in {**weights, **state}.items() if not leaf.sharding.is_fully_replicated}
    assert any("query/dense/kernel" in name for name in split) == (sizes[1] > 1 or bool(rules))
    assert {n for n in split if n.startswith("mu/")} == {n.replace("params/", "mu/") for n in split if "params/" in n}


def test_the_lots_of_a_step_have_rows_of_every_device_and_none_leaves_its_own(shop, tmp_path):
    run = live_run(shop, tmp_path, (8, 1, 1), **LORA)
    part, inputs = run.live.backbones["words"], run.live_catalogue.inputs["words"]
    layout = part.layout(inputs, run.shards.batch_parts)
    rows = np.tile(np.arange(1, len(inputs.present), dtype=np.int32), 8)
    batch = run.placement.batch(layout.batch(rows, layout.sizes(layout.needed(rows))))
    block = max(batch.parts, key=lambda part: part.ids.shape[0])
    assert block.ids.shape[0] % (2 * LORA["chunk"] * run.shards.batch_parts) == 0

    @jax.jit
    def encoded(trained, frozen, batch):
        return part.states(trained, frozen, batch, None, run.shards)

    own = run.placement.frozen(run.frozen).live.backbones["words"]
    trained = run.placement.state(part.init(jax.random.key(0), part.start))
    text = encoded.lower(trained, own, batch).compile().as_text()
    assert "while" in text
    assert not [kind for kind in ("all-gather", "all-to-all", "all-reduce", "collective-permute") if kind in text]


def test_states_extracted_over_eight_devices_are_those_of_one(shop, tmp_path):
    stores = []
    for number, sizes in enumerate([(1, 1, 1), (8, 1, 1)]):
        config = get_config(str(shop))
        config.parallel.data, config.parallel.model, config.parallel.expert = sizes
        config.extraction.text_batch = config.extraction.image_batch = 4
        run = Run(resolve(config), tmp_path / str(number), terminal())
        stores.append(run.table)
    for one, many in zip(*(jax.tree.leaves(table.values) for table in stores), strict=True):
        # Other block sizes round otherwise.
        np.testing.assert_allclose(many[: len(one)], one, rtol=1e-5, atol=1e-5)
    for one, many in zip(*(jax.tree.leaves(table.present) for table in stores), strict=True):
        np.testing.assert_array_equal(many[: len(one)], one)
