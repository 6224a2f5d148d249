"""LoRA in peft's file layout: what was written is read back, and nothing that does not fit is taken."""

from __future__ import annotations

import json
import re
from dataclasses import replace
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
from mmrec_jax.backbones.registry import find_family
from mmrec_jax.errors import CheckpointError, ConfigError
from mmrec_jax.types import Params
from tests.tiny_backbones import write_backbone

METHOD = MethodConfig(kind="lora", targets=("attention_out", "down", "query"), rank=3, alpha=5.0, layers=(0, 2))
PISSA = {"init_lora_weights": "pissa_niter_4"}  # the rest of the weights has lost what the matrices hold
ROOT = "base_model.model."
QUERY = ROOT + "encoder.layer.0.attention.self.query.lora_A.weight"


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


@pytest.mark.parametrize(
    ("name", "block", "modules"),
    [
        ("vit", "layers.0.", ("attention.o_proj", "attention.q_proj", "mlp.fc2")),
        ("deit", "layers.0.", ("attention.o_proj", "attention.q_proj", "mlp.fc2")),
        ("ast", "layers.0.", ("attention.o_proj", "attention.q_proj", "mlp.fc2")),
        ("dinov2", "encoder.layer.0.", ("attention.o_proj", "attention.q_proj", "mlp.fc2")),
        ("dinov2_swiglu", "encoder.layer.0.", ("attention.o_proj", "attention.q_proj", "mlp.down_proj")),
        ("videomae", "encoder.layer.0.", ("attention.attention.query", "attention.output.dense", "output.dense")),
    ],
)
def test_modules_are_named_as_in_transformers_and_the_files_names_are_read_too(
    name: str, block: str, modules: tuple[str, ...], tmp_path: Path
) -> None:
    backbone = load(str(write_backbone(tmp_path / "base", name)))
    method = replace(METHOD, layers=(0,))
    added = random_part(backbone, method)
    export_lora(tmp_path, backbone, method, added)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    assert {key for key in tensors if "lora_A" in key} == {f"{ROOT}{block}{module}.lora_A.weight" for module in modules}
    in_file = {weight.module: weight.source for weight in backbone.weight_map.weights if weight.module}
    renamed = {}
    for key, tensor in tensors.items():
        module, matrix = key.removeprefix(ROOT).split(".lora_")
        renamed[f"{ROOT}{in_file.get(module, module).removesuffix('.weight')}.lora_{matrix}"] = tensor
    assert (renamed.keys() == tensors.keys()) == (name == "videomae")
    for written in (tensors, renamed):
        save_file(written, path)
        jax.tree.map(np.testing.assert_array_equal, import_lora(tmp_path, backbone)[1], added)
    if name != "videomae":
        save_file(tensors | renamed, path)
        with pytest.raises(CheckpointError, match="is of the same matrix as another"):
            import_lora(tmp_path, backbone)


def test_a_gated_feed_forward_has_its_halves_as_modules(tmp_path: Path) -> None:
    backbone = load(str(write_backbone(tmp_path / "base", "dinov2_swiglu")))
    method = MethodConfig(kind="lora", targets=("gate", "up"), rank=2)
    added = random_part(backbone, method)
    export_lora(tmp_path, backbone, method, added)
    found, again = import_lora(tmp_path, backbone)
    assert found == method
    jax.tree.map(np.testing.assert_array_equal, again, added)


@pytest.mark.parametrize(
    ("name", "pair", "kind", "tower"),
    [
        ("clip_text", "clip", "text", "text_model."),
        ("clip_vision", "clip", "image", "vision_model."),
        ("siglip_vision", "siglip", "image", "vision_model."),
    ],
)
def test_a_tower_of_two_is_named_as_in_the_model_of_both(
    name: str, pair: str, kind: str, tower: str, tmp_path: Path
) -> None:
    alone = load(str(write_backbone(tmp_path / "base", name)))
    of_two = replace(alone, family=find_family(pair, "config.json", kind))
    method = replace(METHOD, layers=(0,))
    added = random_part(alone, method)
    for backbone, prefix, before in ((alone, None, ""), (of_two, None, tower), (of_two, "", ""), (alone, "it.", "it.")):
        export_lora(tmp_path, backbone, method, added, prefix=prefix)
        targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
        query = "encoder.layers.0.self_attn.q_proj"
        assert f"{ROOT}{before}{query}.lora_A.weight" in load_file(tmp_path / "adapter_model.safetensors")
        assert re.fullmatch(targets, before + query)
        assert not re.fullmatch(targets, f"other.{before}{query}")
        if before in ("", tower):
            jax.tree.map(np.testing.assert_array_equal, import_lora(tmp_path, backbone)[1], added)


def test_what_is_no_lora_of_the_backbone_is_not_written(backbone: Backbone, tmp_path: Path) -> None:
    added = random_part(backbone)
    flat = traverse_util.flatten_dict(added, sep="/")
    first = min(flat)
    assert first.endswith("/added_attention_out/a") or first.endswith("/added_query/a")
    houlsby = random_part(backbone, MethodConfig(kind="houlsby", bottleneck=4))
    without = traverse_util.unflatten_dict({path: leaf for path, leaf in flat.items() if path != first}, sep="/")
    higher = traverse_util.unflatten_dict(flat | {first: np.concatenate([flat[first]] * 2)}, sep="/")
    for method, part, message in (
        (METHOD, {}, r"there is no LoRA to write: give what was trained, params\[\"embedded\"\]\[modality\]"),
        (METHOD, houlsby, r"added_attention/\S+ \[.*\] is no matrix of LoRA"),
        (METHOD, {"title": added}, r"title/transformer/block_0/\S+ \[.*\] is no matrix of LoRA .* give the method and"),
        (METHOD, without, f"the other matrix of {first[:-2]} is missing"),
        (METHOD, higher, rf"{first} \[\d+, 3\] should be \[\d+, 3\] at rank=3"),
        (replace(METHOD, rank=8), added, rf"{first} \[\d+, 3\] should be \[\d+, 8\] at rank=8"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_lora(tmp_path / "adapter", backbone, method, part)
    assert not (tmp_path / "adapter").exists()


def test_a_backbone_whose_weights_are_trained_reads_them_too(backbone: Backbone, tmp_path: Path) -> None:
    added = random_part(backbone)
    every = set(traverse_util.flatten_dict(backbone.params, sep="/"))
    for names in ({name for name in every if "block_2/" in name}, every):
        without = replace(backbone, params=split(backbone.params, names)[1])
        export_lora(tmp_path, without, METHOD, added)
        jax.tree.map(np.testing.assert_array_equal, import_lora(tmp_path, without)[1], added)


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
