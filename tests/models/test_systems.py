"""Systems by name: the library's pages, and a module of one's own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.config import base, from_json, modality, resolve
from mmrec_jax.errors import ConfigError
from mmrec_jax.experiment import build_task, description, id_baseline
from mmrec_jax.sequence import GruConfig, SasRecConfig
from mmrec_jax.store.table import StateTable
from mmrec_jax.systems import SYSTEMS, system
from mmrec_jax.training.items import SequentialFrozen

OWN = """
import flax.linen as nn
from mmrec_jax.systems import System
from mmrec_jax.types import ItemVectors

class Mean(nn.Module):
    width: int

    @nn.compact
    def __call__(self, hidden):
        return ItemVectors(nn.Dense(self.width)(sum(states[-1] for states in hidden.values.values())))

SYSTEM = System(lambda config, catalogue: Mean(config.model.width))
"""


def config(name, names=("text",), **user):
    made = base("x")
    made.model.system, made.model.width = name, 4
    made.user.update(user)
    made.modalities = {each: modality(template="{title}") for each in names}
    return made


def test_a_module_elsewhere_is_a_system_without_a_change_here(tmp_path, monkeypatch):
    (tmp_path / "my_shop_towers").mkdir()
    (tmp_path / "my_shop_towers" / "mean.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    table = StateTable({"text": (jnp.ones((6, 3)),)}, {}, {"text": jnp.arange(6) > 0}, complete=True)
    task = build_task(resolve(config("my_shop_towers.mean")), table, 6)
    frozen = SequentialFrozen(table, jnp.zeros(6))
    params = jax.jit(task.init)(jax.random.key(0), frozen)
    rows = jnp.array([1, 2])
    vectors = task.item_vectors(params, task.item_encoder.inputs(frozen, rows)).vector
    kernel = params["items"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(vectors, np.ones((2, 3)) @ np.asarray(kernel), rtol=1e-6, atol=1e-6)  # float32


def test_every_page_holds_a_system_whose_switches_are_keys_of_the_model():
    keys = set(base("x").model)
    for name in SYSTEMS:
        assert set(system(name).switches) <= keys, name


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (config("crossann"), "model.system='crossann': choose one of crossan, "),
        (config("my_shop.nothing"), "No module named 'my_shop'"),
        (config("json.decoder"), "the module holds no SYSTEM"),
        (config("crossan", ()), "reads hidden states: name at least one modality"),
        (config("sasrec"), "knows items by id only: it takes no modalities"),
        (config("sasrec", (), kind="gru"), "take model.system='gru4rec'"),
        (config("gru4rec", ()), "needs user.kind='gru'"),
        (config("gru4rec", (), kind="gru", heads=4), "user.heads=4 means nothing to user.kind='gru'"),
        (config("crossan", kind="lstm"), "user.kind='lstm': choose sasrec or gru"),
    ],
)
def test_what_cannot_be_is_refused(made, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        resolve(made)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"model.system": "iisan", "model.towers": "inter", "model.bottlenecks": (("text", 5),)},
            "model.bottlenecks=(('text', 5),) means nothing to model.towers='inter'",
        ),
        (
            {"model.gate": "add", "model.gate_temperature": 0.5},
            "model.gate_temperature=0.5 means nothing to model.gate='add'; it is read by softmax, sigmoid. Leave it",
        ),
        ({"scoring.scale": 5.0}, "scoring.scale=5.0 means nothing to scoring.similarity='dot'; it is read by cosine"),
        (
            {"fusion.kind": "concat", "fusion.expert": "linear"},
            "fusion.expert='linear' means nothing to fusion.kind='concat'; it is read by momef, experts. Leave",
        ),
        ({"fusion.kind": "attention", "fusion.residual": True}, "fusion.residual=True means nothing to"),
        ({"fusion.kind": "sum", "fusion.temperature": 0.5}, "it is read by momef, experts, attention. Leave it at 1.0"),
    ],
)
def test_a_value_that_nothing_reads_is_refused_but_in_what_an_earlier_version_kept(values, message):
    made = config("crossan", ("text", "image"))
    made.update_from_flattened_dict(values)
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve(made)
    *others, (unread, _) = values.items()
    plain = config("crossan", ("text", "image"))
    plain.update_from_flattened_dict(dict(others))
    found = from_json(made.to_dict())
    assert found == resolve(plain)
    assert unread.split(".")[1] in description(found, "data", None)["info"]["unread"][unread.split(".")[0]]


def test_ids_twice_are_refused():
    made = config("sasrec", ())
    made.model.add_ids = True
    with pytest.raises(ConfigError, match="reads ids already"):
        resolve(made)


def test_the_user_encoder_is_the_configs_and_that_of_the_baseline_is_sasrec():
    made = config("crossan", kind="gru", blocks=1)
    made.model.add_ids, made.model.bottleneck = True, 3
    table = StateTable({"text": (jnp.ones((6, 3)),)}, {}, {"text": jnp.arange(6) > 0}, complete=True)
    assert build_task(resolve(made), table, 6).user == GruConfig(4, 10, 1, 0.1)
    assert build_task(id_baseline(resolve(made)), None, 6).user == SasRecConfig(4, 10, 1, 2, 0.1)


def test_a_system_with_another_fusion_than_its_papers_is_told_of():
    from mmrec_jax.systems.registry import hint

    config = base("towers")
    config.modalities = {"text": modality(template="{title}"), "image": modality(kind="image", path_template="{item}")}
    config.model.system = "iisan"
    assert "fusion.kind='concat' in its paper" in hint(resolve(config))
    config.fusion.kind = "concat"
    assert hint(resolve(config)) == ""
    config.model.system = "crossan"
    assert hint(resolve(config)) == ""
