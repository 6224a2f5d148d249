"""CROSSAN's item encoder against a plain-numpy version, and what presence, size and switches must do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_jax.adapters import TowerConfig, TowerSpec
from mmrec_jax.adapters.towers import growth_rules
from mmrec_jax.errors import ConfigError
from mmrec_jax.fusion import FUSIONS, FusionConfig
from mmrec_jax.sequence import SasRec, SasRecConfig
from mmrec_jax.systems.crossan import Crossan, CrossanConfig
from mmrec_jax.training import warm_start
from mmrec_jax.training.trees import named_leaves
from tests.models.helpers import applied, begun, crossan, hidden, random_params
from tests.models.reference import block
from tests.models.reference_crossan import crossan_item

NAMES = ("text", "image", "audio")
IISAN_PARAMETERS = 4_113_877  # papers.md 1.0: two modalities, 7 of 13 layers x 768, r = 64, D = 64


def as_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def numpy_states(states, row, names):
    return {n: [np.asarray(layer[row], np.float64) for layer in states.values[n]] for n in names}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("complete", [True, False])
def test_item_vectors_equal_the_equations(count, complete):
    names = NAMES[:count]
    states = hidden(names, complete=complete)
    module = crossan(names)
    params = random_params(module, states)
    result = applied(module, params, states)
    for row in range(5):
        vector, weights = crossan_item(as_float64(params), numpy_states(states, row, names), {"kind": "momef"})
        # float32 against float64 over three rungs of width 8
        np.testing.assert_allclose(result.vector[row], vector, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(result.weights[row], list(weights.values()), rtol=2e-5, atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True))
def test_an_absent_modality_is_as_if_the_model_had_never_had_it(seed, absent):
    present = {name: np.array([True, name not in absent, True, True, True]) for name in NAMES}
    states = hidden(NAMES, present=present, seed=seed)
    module = crossan(NAMES)
    params = random_params(module, states, seed)
    result = applied(module, params, states)
    kept = [name for name in NAMES if name not in absent]
    vector, weights = crossan_item(as_float64(params), numpy_states(states, 1, kept), {"kind": "momef"})
    np.testing.assert_allclose(result.vector[1], vector, rtol=5e-5, atol=5e-6)
    for column, name in enumerate(NAMES):
        if name in absent:
            assert result.weights[1, column] == 0.0  # exactly
        else:
            np.testing.assert_allclose(result.weights[1, column], weights[name], rtol=5e-5, atol=5e-6)
    # Whatever lies in the absent modality's place is never read.
    noise = {name: tuple(layer.at[1].set(1e6) for layer in states.values[name]) for name in absent}
    other = applied(module, params, states.replace(values=states.values | noise))
    np.testing.assert_array_equal(other.vector, result.vector)


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_masked_and_unmasked_paths_agree_where_everything_is_present(fusion):
    module, states = crossan(NAMES, fusion=fusion), hidden(NAMES)
    params = random_params(module, states)
    with_masks = applied(module, params, states)
    without = applied(module, params, states.replace(complete=True))
    # the same sums in another order
    np.testing.assert_allclose(with_masks.vector, without.vector, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(with_masks.weights, without.weights, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_every_fusion_gives_an_absent_modality_no_weight(fusion):
    present = {"image": np.array([True, False, True, False, True])}
    states = hidden(NAMES[:2], present=present)
    module = crossan(NAMES[:2], fusion=fusion)
    result = applied(module, random_params(module, states), states)
    assert (np.asarray(result.weights)[[1, 3], 1] == 0).all()
    np.testing.assert_allclose(np.asarray(result.weights).sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_shared_gates_grow_for_a_deeper_modality_and_items_without_it_keep_their_vectors(gate):
    def module(*names):
        specs = tuple(TowerSpec(name, 8, {"text": 2, "image": 3}[name], bottleneck=4) for name in names)
        return Crossan(CrossanConfig(TowerConfig(specs, gate=gate, shared_gates=True), FusionConfig(), 4))

    present = {"image": np.array([True, False, True, False, True])}
    both = hidden(("text", "image"), present=present)
    both = both.replace(values=both.values | {"text": both.values["text"][:2]})
    words = both.replace(values={"text": both.values["text"]}, present={"text": both.present["text"]}, complete=True)
    small, large = module("text"), module("text", "image")
    old, fresh = random_params(small, words), begun(large, both)
    params, report = warm_start(old, fresh, growth_rules(named_leaves(fresh)))
    assert report.grown == ("adapters/gate_shared_backbone", "adapters/gate_shared_text")
    for source in ("backbone", "text"):
        grown, name = params["adapters"][f"gate_shared_{source}"], f"gate_shared_{source}"
        np.testing.assert_array_equal(grown, [fresh["adapters"][name][0], *old["adapters"][name]])
    before, after = np.asarray(applied(small, old, words).vector), np.asarray(applied(large, params, both).vector)
    # the same sums in another order
    np.testing.assert_allclose(after[[1, 3]], before[[1, 3]], rtol=1e-5, atol=1e-6)
    assert np.abs(after[[0, 2, 4]] - before[[0, 2, 4]]).max() > 1e-3


def test_one_modality_is_the_intra_modal_tower_of_iisan():
    states = hidden(["text"], complete=True)
    module = crossan(["text"])
    params = random_params(module, states)
    adapters = params["adapters"]
    side = np.zeros((5, 8))
    for rung in range(3):
        difference = adapters["gate_text_backbone"][rung] - adapters["gate_text_text"][rung]
        gate = 1 / (1 + np.exp(-float(difference) / 0.1))
        mixed = gate * np.asarray(states.values["text"][rung], np.float64) + (1 - gate) * side
        side = block(mixed, as_float64(adapters[f"sanb_text_{rung}"]))
    projected = side @ np.asarray(params["project_text"]["kernel"]).T + np.asarray(params["project_text"]["bias"])
    from mmrec_jax.adapters import CrossModalTowers

    towers = applied(CrossModalTowers(module.config.tower), adapters, states)
    np.testing.assert_allclose(
        towers["text"] @ params["project_text"]["kernel"].T + params["project_text"]["bias"],
        projected,
        rtol=2e-5,
        atol=2e-6,
    )


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
def test_gates_start_with_half_of_the_weight_on_the_backbone(gate):
    from mmrec_jax.adapters.gates import source_weights

    states = hidden(NAMES)
    params = begun(crossan(NAMES, gate=gate), states)["adapters"]
    logits = jnp.stack([params[f"gate_text_{source}"][0] for source in ("backbone", *NAMES)])
    weights = source_weights(logits, 0.1, gate, jnp.ones(4, bool))
    np.testing.assert_allclose(weights, [0.5, 1 / 6, 1 / 6, 1 / 6], rtol=1e-5)  # float32 exp


SWITCHES = [
    {"cross_source": "none"},
    {"cross_source": "backbone"},
    {"gate": "sigmoid"},
    {"gate": "add"},
    {"shared_gates": True},
    {"shared_gates": True, "cross_source": "none"},
    {"activation": "gelu"},
]


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_each_switch_changes_the_model_and_trains(switch):
    states = hidden(NAMES[:2])
    module = crossan(NAMES[:2], **switch)
    params = random_params(module, states)
    plain = crossan(NAMES[:2])
    default = applied(plain, random_params(plain, states), states).vector
    assert not np.allclose(applied(module, params, states).vector, default)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(module.apply({"params": p}, states).vector ** 2)))(params)
    unused = {path for path, leaf in _named(grads).items() if not np.any(leaf)}
    allowed = {path for path in _named(grads) if "gate_" in path} if switch.get("gate") == "add" else set()
    assert unused <= allowed


def test_without_cross_source_a_tower_does_not_see_the_other_modality():
    states = hidden(NAMES[:2])
    module = crossan(NAMES[:2], cross_source="none", fusion="sum")
    params = random_params(module, states)
    towers_only = lambda s: _tower(module, params, s)["text"]  # noqa: E731  # a one-line probe
    changed = states.replace(values=states.values | {"image": tuple(2 * x for x in states.values["image"])})
    np.testing.assert_array_equal(towers_only(states), towers_only(changed))
    crossed = crossan(NAMES[:2], fusion="sum")
    cross_params = random_params(crossed, states)
    assert not np.allclose(
        _tower(crossed, cross_params, states)["text"], _tower(crossed, cross_params, changed)["text"]
    )


def test_towers_of_other_width_and_depth_end_together():
    specs = (TowerSpec("text", 8, 4, 4), TowerSpec("image", 6, 2, 3))
    module = Crossan(CrossanConfig(TowerConfig(specs), FusionConfig(), 4))
    text, image = hidden(["text"], layers=4, width=8), hidden(["image"], layers=2, width=6)
    states = text.replace(values=text.values | image.values, present=text.present | image.present, complete=True)
    params = random_params(module, states)
    assert "transform_text_from_image_3" in params["adapters"]
    assert "transform_text_from_image_0" not in params["adapters"]
    assert params["adapters"]["transform_image_from_text_1"]["kernel"].shape == (8, 6)
    before = _tower(module, params, states)
    # The last layer of text is read in its last rung, after the image tower took its last side state from text.
    last = (*states.values["text"][:3], states.values["text"][3] + 1)
    after = _tower(module, params, states.replace(values=states.values | {"text": last}))
    np.testing.assert_array_equal(before["image"], after["image"])
    assert not np.allclose(before["text"], after["text"])


def test_two_base_size_modalities_need_at_most_43_percent_of_iisans_parameters():
    specs = tuple(TowerSpec(name, 768, 7, 64) for name in ("text", "image"))
    module = Crossan(CrossanConfig(TowerConfig(specs), FusionConfig(), 64))
    states = jax.eval_shape(lambda: hidden(["text", "image"], items=1, layers=7, width=768))
    items = jax.eval_shape(lambda s: module.init(jax.random.key(0), s), states)["params"]
    users = jax.eval_shape(
        lambda: SasRec(SasRecConfig()).init(
            jax.random.key(0), jnp.zeros((1, 10, 64)), jnp.ones((1, 10), bool), train=False
        )
    )["params"]
    total = sum(leaf.size for leaf in jax.tree.leaves((items, users)))
    assert total == 1_603_500
    assert total <= 0.43 * IISAN_PARAMETERS


def test_item_order_does_not_matter():
    states = hidden(NAMES, present={"text": np.array([True, True, False, True, True])})
    module = crossan(NAMES)
    params = random_params(module, states)
    order = np.array([3, 1, 4, 0, 2])
    turned = jax.tree.map(lambda leaf: leaf[order], states)
    # matrix products of permuted rows may sum in another order
    np.testing.assert_allclose(
        applied(module, params, turned).vector,
        np.asarray(applied(module, params, states).vector)[order],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TowerConfig(()),
        lambda: TowerConfig((TowerSpec("backbone", 8, 2),)),
        lambda: TowerConfig((TowerSpec("text", 8, 2),), gate="tanh"),
        lambda: TowerConfig((TowerSpec("text", 8, 2),), cross_source="both"),
        lambda: FusionConfig(kind="mean"),
        lambda: FusionConfig(temperature=0.0),
        lambda: FusionConfig(expert="identity", residual=True),
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()


def _tower(module, params, states):
    from mmrec_jax.adapters import CrossModalTowers

    return applied(CrossModalTowers(module.config.tower), params["adapters"], states)


def _named(tree):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
