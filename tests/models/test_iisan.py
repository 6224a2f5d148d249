"""IISAN, IISAN-Versa and the linear head against plain-numpy versions; sizes; what presence and switches must do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.adapters.chain import tower
from mmrec_jax.adapters.sanb import ACTIVATIONS
from mmrec_jax.backbones.config import evenly_spaced
from mmrec_jax.config import base, modality, resolve
from mmrec_jax.errors import ConfigError
from mmrec_jax.sequence import SasRec, SasRecConfig
from mmrec_jax.systems import CatalogueShape, StateShape, build, reads
from mmrec_jax.types import HiddenStates
from tests.models.helpers import applied, hidden, random_params
from tests.models.reference_systems import iisan_item

NAMES = ("text", "image")


def config(system, names=NAMES, fusion="concat", **model):
    made = base("x")
    made.model.system, made.model.width, made.fusion.kind = system, 4, fusion
    if system != "linear":
        made.model.bottleneck = 3
    made.modalities = {name: modality(template="{title}") for name in names}
    made.model.update(model)
    return resolve(made)


def encoder(system, shapes, **model):
    """A small item encoder; `shapes`: modality -> (width, layers)."""
    catalogue = CatalogueShape(6, {name: StateShape(*shape) for name, shape in shapes.items()})
    return build(config(system, shapes, **model), catalogue)


def states_of(shapes, items=5, **kwargs):
    parts = [
        hidden([n], items, layers, width, seed=i, **kwargs) for i, (n, (width, layers)) in enumerate(shapes.items())
    ]
    values = {name: part.values[name] for name, part in zip(shapes, parts, strict=True)}
    present = {name: part.present[name] for name, part in zip(shapes, parts, strict=True)}
    return HiddenStates(values, present, parts[0].complete)


def plain(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def check_items(module, params, states, order, **switches):
    result = applied(module, params, states)
    for row in range(5):
        one = {name: [layer[row] for layer in plain(states.values[name])] for name in order}
        expected = iisan_item(plain(params), one, order, **switches)
        # float32 against float64 over three rungs of width 8
        np.testing.assert_allclose(result.vector[row], expected, rtol=5e-5, atol=5e-6)


EQUAL = {"text": (8, 3), "image": (8, 3)}
SWITCHES = [
    ({}, {}),
    ({"towers": "intra"}, {"inter": False}),
    ({"towers": "inter"}, {"intra": False}),
    ({"gate": "add"}, {"gated": False}),
    ({"remove_first": True}, {"remove_first": True}),
    ({"towers": "inter", "gate": "add", "remove_first": True}, {"intra": False, "gated": False, "remove_first": True}),
    ({"gate_temperature": 0.7}, {"temperature": 0.7}),
]


@pytest.mark.parametrize(("model", "switches"), SWITCHES, ids=lambda value: ",".join(value) or "default")
def test_item_vectors_equal_iisans_equations(model, switches):
    module, states = encoder("iisan", EQUAL, **model), states_of(EQUAL, complete=True)
    check_items(module, random_params(module, states), states, NAMES, **switches)


@pytest.mark.parametrize(
    "shapes",
    [EQUAL, {"text": (10, 5), "image": (8, 3)}, {"text": (8, 2), "image": (10, 4)}],
    ids=["equal", "wider and deeper text", "wider and deeper image"],
)
def test_item_vectors_equal_versas_equations(shapes):
    module, states = encoder("iisan_versa", shapes), states_of(shapes, complete=True)
    params = random_params(module, states)
    check_items(module, params, states, NAMES, narrow=True)
    without = applied(module, params, states).vector
    masked = applied(module, params, HiddenStates(states.values, states.present, complete=False)).vector
    np.testing.assert_allclose(masked, without, rtol=1e-5, atol=1e-6)  # the same sums in another order


def test_modalities_may_have_bottlenecks_of_their_own():
    module = encoder("iisan_versa", EQUAL, bottlenecks=(("image", 5),))
    params = random_params(module, states_of(EQUAL))["adapters"]
    assert [params[f"sanb_{name}_0"]["down"].shape[0] for name in ("text", "image", "inter")] == [3, 5, 3]


@pytest.mark.parametrize(("system", "expected"), [("iisan", 4_113_877), ("iisan_versa", 2_941_013)])
def test_parameters_at_the_papers_sizes(system, expected):
    shapes = dict.fromkeys(NAMES, (768, 7))
    module = encoder(system, shapes, width=64, bottleneck=64)
    states = jax.eval_shape(lambda: states_of(shapes, items=1))
    items = jax.eval_shape(lambda s: module.init(jax.random.key(0), s), states)["params"]
    history = jnp.zeros((1, 10, 64)), jnp.ones((1, 10), bool)
    users = jax.eval_shape(lambda: SasRec(SasRecConfig()).init(jax.random.key(0), *history, train=False))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves((items, users))) == expected


def test_an_absent_modality_leaves_the_inter_tower_to_the_other_and_has_no_weight():
    module = encoder("iisan", EQUAL)
    states = states_of(EQUAL)
    absent = states.present | {"image": jnp.array([True, False, True, True, True])}
    states = HiddenStates(states.values, absent)
    params = random_params(module, states)
    result = applied(module, params, states)
    assert result.weights.shape == (5, 3)
    assert (np.asarray(result.weights[:, 1]) == [result.weights[0, 1], 0, *result.weights[2:, 1]]).all()
    noise = {"image": tuple(layer.at[1].set(1e6) for layer in states.values["image"])}
    other = applied(module, params, HiddenStates(states.values | noise, states.present))
    np.testing.assert_array_equal(other.vector, result.vector)  # what lies in its place is never read


def test_three_modalities_have_intra_towers():
    shapes = dict.fromkeys(("text", "image", "audio"), (8, 2))
    module, states = encoder("iisan", shapes, towers="intra"), states_of(shapes, complete=True)
    check_items(module, random_params(module, states), states, tuple(shapes), inter=False)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("rungs", [1, 3])
def test_derivatives_of_a_tower_are_those_of_its_equations(rungs, activation):
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(0.5 * rng.standard_normal(shape), jnp.float32)

    def equations(first, sources, shares, blocks, head):
        side = None
        for rung, (source, (down, down_bias, up, up_bias)) in enumerate(zip(sources, blocks, strict=True)):
            z = first * source if side is None else source + shares[rung] * side
            side = z + ACTIVATIONS[activation](z @ down.T + down_bias) @ up + up_bias
        return side @ head[0].T + head[1]

    blocks = [(draw(3, 12), draw(3), draw(3, 12), draw(12)) for _ in range(rungs)]
    arguments = draw(), [draw(7, 12) for _ in range(rungs)], draw(rungs), blocks, (draw(5, 12), draw(5))
    weight = draw(7, 5)
    theirs = jax.grad(lambda a: jnp.sum(weight * equations(*a)))(arguments)
    for frozen in (False, True):
        ours = jax.grad(lambda a: jnp.sum(weight * tower(*a, activation, frozen)))(arguments)  # noqa: B023 - used here
        if frozen:
            assert not np.any(ours[1][0])
            ours[1][0] = theirs[1][0]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), ours, theirs)  # sum order


def test_states_of_a_trained_backbone_are_given_gradients():
    module, states = encoder("iisan", EQUAL, towers="intra"), states_of(EQUAL, complete=True)
    params, present = random_params(module, states), states.present

    def loss(values, trained):
        states = HiddenStates(values, present, complete=True, trained=trained)
        return jnp.sum(applied(module, params, states).vector ** 2)

    gradients = {trained: jax.grad(loss)(states.values, trained) for trained in (False, True)}
    assert not np.any(gradients[False]["text"][0])
    assert np.any(gradients[True]["text"][0])


@pytest.mark.parametrize("which", ["last", "concatenated"])
def test_the_linear_head_reads_what_it_is_told_to(which):
    module, states = encoder("linear", EQUAL, states=which), states_of(EQUAL, complete=True)
    params = random_params(module, states)
    numbers = plain(params)
    expected = numbers["fusion"]["bias"]
    for name in NAMES:
        layers = plain(states.values[name])
        read = layers[-1] if which == "last" else np.concatenate(layers, axis=1)
        vector = read @ numbers[f"project_{name}"]["kernel"] + numbers[f"project_{name}"]["bias"]
        expected = expected + vector @ numbers["fusion"][f"kernel_{name}"]
    # float32 against float64
    np.testing.assert_allclose(applied(module, params, states).vector, expected, rtol=5e-5, atol=5e-6)


def test_ids_and_content_are_added():
    made = encoder("linear", EQUAL, add_ids=True)
    states, rows = states_of(EQUAL, complete=True), jnp.array([3, 1, 5, 0, 3])
    params = made.init(jax.random.key(0), states, rows)["params"]
    content = encoder("linear", EQUAL).apply({"params": params["content"]}, states)
    result = applied(made, params, states, rows)
    np.testing.assert_allclose(
        result.vector, content.vector + params["ids"]["embedding"][rows], rtol=1e-6, atol=1e-6
    )  # one addition
    assert reads(config("linear", add_ids=True)) == ("states", "ids")


@pytest.mark.parametrize(
    ("depth", "count", "expected"),
    [
        (12, 7, (0, 2, 4, 6, 8, 10, 12)),  # ViT-B, BERT-B; these three are the authors' (papers.md 1.0b)
        (80, 7, (0, 5, 20, 35, 50, 65, 80)),  # Llama-3-70B
        (48, 7, (0, 3, 12, 21, 30, 39, 48)),  # EVA-CLIP-18B
        (6, 4, (0, 2, 4, 6)),
        (4, 2, (0, 4)),
    ],
)
def test_lists_of_one_length_for_encoders_of_any_depth(depth, count, expected):
    assert evenly_spaced(depth, count) == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config("iisan", ("text",)), "the inter-modal tower mixes two modalities, and the config has text"),
        (lambda: config("iisan", ("a", "b", "c")), "mixes two modalities, and the config has a, b, c"),
        (lambda: config("iisan", ("text", "inter")), "can't be called 'inter'"),
        (lambda: config("iisan", gate="sigmoid"), "IISAN's two weights sum to one"),
        (lambda: config("iisan", towers="all"), "model.towers='all': choose one of both, intra, inter"),
        (lambda: config("iisan", cross_source="none"), "means nothing to model.system='iisan'; it is read by crossan"),
        (lambda: config("crossan", towers="intra"), "means nothing to model.system='crossan'"),
        (lambda: config("linear", states="first"), "choose last or concatenated"),
        (lambda: config("sasrec", ()), "model.bottleneck=3 means nothing to model.system='sasrec'"),
        (lambda: encoder("iisan", {"text": (8, 3), "image": (6, 3)}), "text 3 x 8, image 3 x 6 (layers x width)"),
        (lambda: encoder("iisan", dict.fromkeys(NAMES, (8, 1)), remove_first=True), "no layer is left"),
        (lambda: evenly_spaced(4, 6), "6 layers of 4 blocks"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()
