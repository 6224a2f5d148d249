"""Standardised hidden states: what is measured, on which items, and what it makes of a backbone's own scale."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.adapters.standardise import FLOOR, Standardise
from mmrec_jax.modes.results import trained_parameters
from mmrec_jax.store.table import StateTable
from mmrec_jax.systems.crossan import Crossan
from mmrec_jax.training.items import CatalogueItems, SequentialFrozen
from tests.models.helpers import applied, begun, crossan, hidden

NAMES = ("text", "image")


def measured(states):
    return begun(Standardise(), states)


def standardised(states):
    return applied(Standardise(), measured(states), states)


def test_layers_of_any_scale_come_out_with_mean_zero_and_mean_square_one():
    states = hidden(NAMES, items=200)
    factors = (0.01, 1.0, 50.0)
    image = tuple(5 * factor + factor * x for factor, x in zip(factors, states.values["image"], strict=True))
    result = standardised(states.replace(values=states.values | {"image": image}))
    for layers in result.values.values():
        for layer in layers:
            np.testing.assert_allclose(jnp.mean(layer, axis=0), 0.0, atol=1e-5)  # float32 sums of 200 values
            # The floor takes FLOOR x power from it; here the power is at most 26 times the spread.
            assert 1 / (1 + 30 * FLOOR) <= jnp.mean(layer**2) <= 1


def test_a_backbone_of_another_scale_makes_the_same_item_vectors():
    states = hidden(NAMES, items=50, complete=True)
    louder = states.replace(values=states.values | {"image": tuple(40 * x for x in states.values["image"])})
    plain = crossan(NAMES)
    module = Crossan(replace(plain.config, standardise=True))

    def fresh(module, states):
        return applied(module, begun(module, states), states).vector

    np.testing.assert_allclose(fresh(module, states), fresh(module, louder), rtol=1e-4, atol=1e-5)  # float32
    assert not np.allclose(fresh(plain, states), fresh(plain, louder), rtol=0.1)


def test_a_layer_that_says_nothing_stays_silent():
    states = hidden(["text"], items=100)
    noise = 1e-4 * states.values["text"][0]
    constant = states.replace(values={"text": (7.0 + noise,)})
    assert jnp.max(jnp.abs(standardised(constant).values["text"][0])) < 0.01


def test_absent_items_are_not_measured():
    present = np.array([True, False, True, True, True])
    states = hidden(NAMES, present={"image": present})
    params = measured(states)
    there = np.asarray(states.values["image"][0])[present]
    np.testing.assert_allclose(params["image_0"]["mean"], there.mean(0), rtol=1e-5, atol=1e-6)  # float32 sums
    loud = states.replace(values=states.values | {"image": tuple(x.at[1].set(1e6) for x in states.values["image"])})
    jax.tree.map(np.testing.assert_array_equal, params, measured(loud))


def test_what_was_measured_is_never_trained():
    states = hidden(NAMES)
    module = Crossan(replace(crossan(NAMES).config, standardise=True))
    params = begun(module, states)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(module.apply({"params": p}, states).vector ** 2)))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["standardise"]))
    assert np.any(grads["project_image"]["kernel"])


@pytest.mark.parametrize("items", [3, 40])
def test_the_whole_catalogue_but_the_padding_row_is_measured(items):
    states = hidden(["text"], items=items + 1)
    padded = tuple(x.at[0].set(1e6) for x in states.values["text"])
    table = StateTable({"text": padded}, {}, {"text": jnp.arange(items + 1) > 0}, complete=True)
    module = Crossan(replace(crossan(["text"]).config, standardise=True))
    frozen = SequentialFrozen(table, jnp.zeros(items + 1))
    params = jax.jit(CatalogueItems(module).init)(jax.random.key(0), frozen)
    for k, layer in enumerate(padded):
        np.testing.assert_allclose(
            params["standardise"][f"text_{k}"]["mean"], np.asarray(layer)[1:].mean(0), rtol=1e-5, atol=1e-6
        )  # float32 sums


def test_rows_that_the_table_does_not_have_are_not_read():
    # As where live backbones give the states, and one item stands for the shapes of all.
    table = StateTable({"text": (jnp.asarray([[9.0], [2.0]]),)}, {}, {"text": jnp.arange(2) > 0}, complete=True)
    read = CatalogueItems(Standardise()).init(jax.random.key(0), SequentialFrozen(table, jnp.zeros(5000)))
    assert read["text_0"]["mean"].tolist() == [2.0]


def test_only_what_is_trained_counts_as_a_parameter():
    params = {"items": {"standardise": {"a_0": {"mean": np.zeros(5), "scale": np.zeros(())}}, "b": np.zeros((2, 3))},
              "user": {"c": np.zeros(4)}}  # fmt: skip
    assert trained_parameters(params, ()) == 6 + 4
    assert trained_parameters(params, (("user", 0.1),)) == 6 + 4
    assert trained_parameters(params, (("user", 0.0),)) == 6
