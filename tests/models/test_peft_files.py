"""LoRA in peft's file layout: what was written is read back, and nothing that does not fit is taken."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from mmrec_jax.adapters.config import MethodConfig
from mmrec_jax.adapters.embedded import EmbeddedMethod, split
from mmrec_jax.adapters.peft_files import export_lora, import_lora
from mmrec_jax.backbones.backbone import Backbone, load
from mmrec_jax.errors import CheckpointError, ConfigError
from mmrec_jax.types import Params
from tests.tiny_backbones import write_backbone

METHOD = MethodConfig(kind="lora", targets=("attention_out", "down", "query"), rank=3, alpha=5.0, layers=(0, 2))
PISSA = {"init_lora_weights": "pissa_niter_4"}  # the rest of the weights has lost what the matrices hold
QUERY = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load(str(write_backbone(tmp_path_factory.mktemp("bert"))))


def random_part(backbone: Backbone, method: MethodConfig = METHOD) -> Params:
    model = backbone.model.clone(method=EmbeddedMethod(method), parent=None)
    shapes = jax.eval_shape(model.init, jax.random.key(0), backbone.example)["params"]
    names = {name for name in traverse_util.flatten_dict(shapes, sep="/") if "/added_" in name}
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), split(shapes, names)[0])


def test_what_was_written_is_read_back(backbone: Backbone, tmp_path: Path) -> None:
    added = random_part(backbone)
    for prefix in ("", "bert."):
        export_lora(tmp_path, backbone, METHOD, added, prefix=prefix)
        method, found = import_lora(tmp_path, backbone)
        assert method == METHOD
        assert jax.tree.structure(found) == jax.tree.structure(added)
        jax.tree.map(np.testing.assert_array_equal, found, added)
    assert load_file(tmp_path / "adapter_model.safetensors")[QUERY.replace("encoder", "bert.encoder")].shape[0] == 3


def test_tensors_that_do_not_fit_are_all_named(backbone: Backbone, tmp_path: Path) -> None:
    export_lora(tmp_path, backbone, METHOD, random_part(backbone))
    path = tmp_path / "adapter_model.safetensors"
    sound = load_file(path)
    lacking = {name: tensor for name, tensor in sound.items() if name != QUERY}
    without = {name: tensor for name, tensor in sound.items() if not name.startswith(QUERY.removesuffix("A.weight"))}
    strange = sound | {"base_model.model.pooler.dense.lora_A.weight": sound[QUERY]}
    wider = sound | {QUERY: np.concatenate([sound[QUERY]] * 2)}
    for tensors, message in (
        (lacking, "the other matrix of .*block_0/attention/query/added_query is missing"),
        (without, "there is nothing for transformer/block_0/attention/query/dense/kernel"),
        (strange, r"tensor base_model.model.pooler.dense.lora_A.weight \[3, \d+\] has no place in the backbone"),
        (wider, rf"tensor {QUERY} \[6, \d+\] should be \[3, \d+\]"),
    ):
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=message):
            import_lora(tmp_path, backbone)


def test_other_computations_than_plain_lora_are_refused(backbone: Backbone, tmp_path: Path) -> None:
    export_lora(tmp_path, backbone, METHOD, random_part(backbone))
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text())
    for change in ({"use_dora": True}, {"use_rslora": True}, {"rank_pattern": {"query": 4}}, {"bias": "all"}, PISSA):
        path.write_text(json.dumps(config | change))
        with pytest.raises(ConfigError, match=f"{next(iter(change))}=.* makes another computation"):
            import_lora(tmp_path, backbone)
    path.write_text(json.dumps(config | {"peft_type": "IA3"}))
    with pytest.raises(ConfigError, match="only peft_type 'LORA' is read"):
        import_lora(tmp_path, backbone)
    with pytest.raises(ConfigError, match="not for 'bitfit'"):
        export_lora(tmp_path, backbone, MethodConfig(kind="bitfit"), {})
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        import_lora(tmp_path / "nowhere", backbone)
