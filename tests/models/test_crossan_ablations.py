"""Every ablation of CROSSAN's towers, by the keys of the config, against a plain-numpy version."""

import itertools

import jax
import numpy as np
import pytest

from mmrec_jax.adapters import CrossModalTowers
from mmrec_jax.config import base, modality, resolve
from mmrec_jax.systems import CatalogueShape, StateShape, build
from mmrec_jax.types import HiddenStates
from tests.models.helpers import hidden, random_params
from tests.models.reference_systems import crossan_towers

SHAPES = {"text": (8, 3), "image": (6, 2)}  # width, layers


@pytest.mark.parametrize(
    ("cross_source", "gate", "shared"),
    list(itertools.product(("side", "backbone", "none"), ("softmax", "sigmoid", "add"), (False, True))),
)
def test_towers_equal_the_equations_for_backbones_of_unequal_width_and_depth(cross_source, gate, shared):
    config = base("x")
    config.modalities = {name: modality(template="{title}") for name in SHAPES}
    config.model.update(bottleneck=3, cross_source=cross_source, gate=gate, shared_gates=shared)
    module = build(resolve(config), CatalogueShape(9, {name: StateShape(*shape) for name, shape in SHAPES.items()}))
    parts = {name: hidden([name], 2, layers, width, seed=width) for name, (width, layers) in SHAPES.items()}
    values = {name: part.values[name] for name, part in parts.items()}
    states = HiddenStates(values, {name: part.present[name] for name, part in parts.items()}, complete=True)
    adapters = random_params(module, states)["adapters"]
    result = CrossModalTowers(module.config.tower).apply({"params": adapters}, states)
    numbers, plain = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree) for tree in (adapters, values))
    for row in range(2):
        one = {name: [layer[row] for layer in plain[name]] for name in SHAPES}
        expected = crossan_towers(numbers, one, tuple(SHAPES), cross_source=cross_source, gate=gate, shared=shared)
        for name in SHAPES:
            # float32 against float64 over three rungs
            np.testing.assert_allclose(result[name][row], expected[name], rtol=5e-5, atol=5e-6)
