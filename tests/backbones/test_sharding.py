"""Tensor parallelism: the rules as data, and an encoder over fake devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flax import traverse_util
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mmrec_jax.backbones.registry import find_family, known_families, preset
from mmrec_jax.backbones.sharding import logical_axes, parameter_shardings
from mmrec_jax.errors import ConfigError
from tests.tiny_backbones import GOLDEN, golden, write_backbone

PROGRAM = """
import re
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from mmrec_jax.backbones import Tokens, load

mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
tokens = Tokens(jnp.asarray([[2, 9, 14, 3], [2, 5, 3, 7]]), jnp.asarray([[True] * 4, [True] * 3 + [False]]))
pixels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 28, 28, 3)), jnp.float32)
for folder, inputs in zip(sys.argv[1:], (tokens, pixels)):
    split = load(folder, mesh=mesh)
    block = split.params["transformer"]["block_0"]
    kernel, down = block["attention"]["query"]["dense"]["kernel"], block["feed_forward"]["down"]["dense"]["kernel"]
    if split.sizes.heads % 2 == 0:
        assert kernel.addressable_shards[0].data.shape == (kernel.shape[0], kernel.shape[1] // 2)
    assert down.addressable_shards[0].data.shape == (down.shape[0] // 2, down.shape[1])
    if split.sizes.heads % 2 == 0:
        apply = jax.jit(lambda params, split=split: split.model.apply({"params": params}, inputs))
        program = apply.lower(split.params).compile().as_text()
        sums = re.findall(r" (all-[a-z]+|collective-permute|reduce-scatter)\\(", program)
        # Two a block, and one for the word embeddings, whose rows are split.
        assert sums == ["all-reduce"] * (2 * split.sizes.depth + 1), sums
    for state, expected in zip(split.hidden_states(inputs), load(folder).hidden_states(inputs), strict=True):
        # Sums over devices add in another order: float32 rounding.
        assert np.abs(np.asarray(state) - np.asarray(expected)).max() < 1e-5 * np.abs(np.asarray(expected)).max()
"""


@pytest.mark.long
def test_an_encoder_split_over_devices_gives_the_same_hidden_states(tmp_path: Path) -> None:
    folders = [str(write_backbone(tmp_path / name, name)) for name in ("llama", "vit")]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": ":".join(filter(None, sys.path)),
    }
    subprocess.run([sys.executable, "-c", PROGRAM, *folders], env=environment, check=True, timeout=120)


def abstract_mesh(model: int):
    return jax.sharding.AbstractMesh((model,), ("model",), axis_types=(AxisType.Auto,))


def specs(name: str, model: int, **rules: str | None) -> dict:
    config = preset(name)
    encoder = find_family(config["model_type"], name).build(config, None)
    shapes = jax.eval_shape(encoder.module.init, jax.random.key(0), encoder.example)["params"]
    return parameter_shardings(shapes, encoder.transformer, abstract_mesh(model), **({"rules": rules} if rules else {}))


def test_heads_are_never_cut_and_uneven_axes_stay_whole() -> None:
    made = specs("llama-3.2-1b", 16)
    attention = made["transformer"]["block_0"]["attention"]
    assert attention["query"]["dense"]["kernel"].spec == P(None, "model")
    assert attention["attention_out"]["dense"]["kernel"].spec == P("model", None)
    # 8 heads of keys on 16 devices: 512 columns could be divided, but heads would be cut.
    assert attention["key"]["dense"]["kernel"].spec == P(None, None)
    assert made["words"]["embedding"].spec == P("model", None)
    assert made["norm"]["scale"].spec == P()
    # 30,522 rows are no multiple of 4.
    assert specs("all-MiniLM-L6-v2", 4)["words"]["embedding"].spec == P(None, None)


def test_rules_say_what_an_axis_means_and_name_axes_of_the_mesh() -> None:
    made = specs("all-MiniLM-L6-v2", 4, mlp="model")
    assert made["transformer"]["block_0"]["feed_forward"]["up"]["dense"]["bias"].spec == P("model")
    assert made["transformer"]["block_0"]["attention"]["query"]["dense"]["kernel"].spec == P(None, None)
    with pytest.raises(ConfigError, match="name the mesh axis tensor, but the mesh has model"):
        specs("all-MiniLM-L6-v2", 4, mlp="tensor")


@pytest.mark.parametrize(
    "path", [p for p in GOLDEN.glob("*.safetensors") if not p.stem.startswith("real_")], ids=lambda p: p.stem
)
def test_every_projection_in_the_blocks_of_every_family_is_split(path: Path) -> None:
    config = json.loads(golden(path.stem)[1]["config"])
    for (model_type, _), family in known_families().items():
        if model_type == config["model_type"]:
            encoder = family.build(config, None)
            shapes = jax.eval_shape(encoder.module.init, jax.random.key(0), encoder.example)["params"]
            kernels = [path for path in traverse_util.flatten_dict(shapes, sep="/") if path.endswith("dense/kernel")]
            assert len(kernels) >= 6 * encoder.transformer.depth
            assert all({"heads", "key_heads", "mlp"} & set(logical_axes(path)) for path in kernels)


def test_parameters_that_methods_add_have_no_logical_axes() -> None:
    assert logical_axes("transformer/block_0/attention/query/added_query/a/kernel") == ()
    assert logical_axes("transformer/block_0/feed_forward/gate/dense/kernel") == ("embed", "mlp")
