"""CROSSAN's item encoder with every ablation, by the keys of the config, against a plain-numpy version."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.config import base, modality, resolve
from mmrec_jax.config_files import load_config
from mmrec_jax.fusion import FUSIONS
from mmrec_jax.systems import CatalogueShape, StateShape, build
from mmrec_jax.types import HiddenStates
from tests.models.helpers import applied, hidden, random_params
from tests.models.reference_crossan import crossan_item
from tests.tiny_run import ROOT

SHAPES = {"text": StateShape(8, 3), "image": StateShape(6, 2), "audio": StateShape(8, 1)}  # width, layers
CLOSE = {"rtol": 5e-5, "atol": 5e-6}  # float32 against float64 over three rungs


def items(shapes, complete):
    """States of items: two that have all modalities, or one of each way to lack some."""
    patterns = [present for present in itertools.product((True, False), repeat=len(shapes)) if any(present)]
    presence = np.array([[True] * len(shapes)] * 2 if complete else patterns)
    values = {
        name: hidden([name], len(presence), shape.layers, shape.width, seed=place).values[name]
        for place, (name, shape) in enumerate(shapes.items())
    }
    masks = {name: jnp.asarray(presence[:, place]) for place, name in enumerate(shapes)}
    return HiddenStates(values, masks, complete), presence


def check(config, shapes, complete, fusion, **towers):
    """Compares all item vectors, and the weights of the modalities, with the equations."""
    module = build(config, CatalogueShape(9, shapes))
    states, presence = items(shapes, complete)
    params = random_params(module, states)
    result = applied(module, params, states)
    plain = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    for row, present in enumerate(presence):
        held = [name for name, there in zip(shapes, present, strict=True) if there]
        one = {name: [np.asarray(layer[row], np.float64) for layer in states.values[name]] for name in held}
        for name in held if config.model.standardise else ():
            measured = [plain["standardise"][f"{name}_{k}"] for k in range(len(one[name]))]
            one[name] = [(x - m["mean"]) * m["scale"] for x, m in zip(one[name], measured, strict=True)]
        vector, weights = crossan_item(plain, one, fusion, **towers)
        np.testing.assert_allclose(result.vector[row], vector, **CLOSE)
        np.testing.assert_allclose(result.weights[row], [weights.get(name, 0) for name in shapes], **CLOSE)


def config_of(fusion, **switches):
    config = base("x")
    config.modalities = {name: modality(template="{title}") for name in SHAPES}
    config.model.update(width=4, bottleneck=3, **switches)
    config.fusion.update(fusion)
    return resolve(config)


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "lacking"])
@pytest.mark.parametrize(
    ("cross_source", "gate", "shared"),
    list(itertools.product(("side", "backbone", "none"), ("softmax", "sigmoid", "add"), (False, True))),
)
def test_towers_equal_the_equations_for_backbones_of_unequal_width_and_depth(cross_source, gate, shared, complete):
    fusion = {"kind": "momef", "expert": "identity"}
    config = config_of(fusion, cross_source=cross_source, gate=gate, shared_gates=shared)
    check(config, SHAPES, complete, fusion, cross_source=cross_source, gate=gate, shared=shared)


@pytest.mark.parametrize("activation", ["gelu", "silu", "identity"])
def test_blocks_of_every_activation_equal_the_equations(activation):
    fusion = {"kind": "sum"}
    config = config_of(fusion, activation=activation, gate_temperature=0.3)
    check(config, SHAPES, False, fusion, activation=activation, temperature=0.3)


FUSED = [
    *({"kind": "momef", "expert": expert} for expert in ("mlp", "linear", "identity")),
    *({"kind": "momef", "expert": expert, "residual": True} for expert in ("mlp", "linear")),
    *({"kind": "momef", "expert": expert, "temperature": 0.5} for expert in ("mlp", "identity")),
    {"kind": "experts", "temperature": 2.0},
    {"kind": "experts", "expert": "linear", "top_k": 2, "residual": True},
    {"kind": "experts", "top_k": 1, "renormalise": False},
    {"kind": "concat"},
    {"kind": "add"},
    {"kind": "sum"},
    {"kind": "attention"},
    {"kind": "attention", "temperature": 0.5},
]


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "lacking"])
@pytest.mark.parametrize("fusion", FUSED, ids=lambda fusion: "-".join(map(str, fusion.values())))
def test_item_vectors_of_every_fusion_equal_the_equations(fusion, complete):
    check(config_of(fusion), SHAPES, complete, fusion)


def test_every_fusion_has_equations_here():
    assert {fusion["kind"] for fusion in FUSED} == set(FUSIONS)


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "lacking"])
def test_the_item_encoder_of_the_main_config_equals_the_equations(complete):
    config = load_config(f"{ROOT}/configs/crossan.py", ("model.bottleneck=3", "model.width=4"))
    shapes = {"overview": StateShape(8, 4), "poster": StateShape(6, 4)}
    assert config.model.standardise
    check(resolve(config), shapes, complete, {"kind": config.fusion.kind, "expert": config.fusion.expert})
