"""Weights in several files with an index."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmrec_jax.backbones.backbone import identify, load
from mmrec_jax.errors import BackboneError
from tests.tiny_backbones import WEIGHTS_INDEX, write_backbone, write_shards


def test_sharded_weights_give_the_parameters_of_the_whole_file(tmp_path: Path) -> None:
    sharded = load(str(write_shards(tmp_path / "sharded")))
    whole = load(str(write_backbone(tmp_path / "whole", "llama")))
    jax.tree.map(np.testing.assert_array_equal, sharded.params, whole.params)
    assert sharded.weights_sha256 == identify(str(tmp_path / "sharded"), "text", 8)["weights_sha256"]


def test_the_digest_covers_every_shard(tmp_path: Path) -> None:
    folder = write_shards(tmp_path)
    before = identify(str(folder), "text", 8)["weights_sha256"]
    last = folder / "model-00003-of-00003.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(last).items()}, last)
    assert identify(str(folder), "text", 8)["weights_sha256"] != before


def test_a_missing_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    folder = write_shards(tmp_path)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(BackboneError, match=r"lacks model-00002-of-00003.safetensors, named in .*fetch the folder"):
        load(str(folder))


@pytest.mark.parametrize("name", ["../other.safetensors", "/tmp/x.safetensors", "a/b.safetensors", "model.bin", 3])
def test_an_index_names_only_safetensors_files_beside_it(name: object, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "model")
    save_file({"x": np.ones(1, np.float32)}, tmp_path / "other.safetensors")
    (folder / WEIGHTS_INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(BackboneError, match=r"index.json (must name safetensors files beside it|is not a sound index)"):
        load(str(folder))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_a_damaged_index_is_an_error(content: str, tmp_path: Path) -> None:
    folder = write_shards(tmp_path)
    (folder / WEIGHTS_INDEX).write_text(content)
    with pytest.raises(BackboneError, match=r"index.json"):
        load(str(folder))


def test_a_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    folder = write_shards(tmp_path)
    first, second = (folder / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    save_file(load_file(first) | {"lm_head.weight": np.ones((60, 24), np.float32)}, first)
    save_file(load_file(second) | {"lm_head.weight": np.ones((60, 24), np.float32)}, second)
    with pytest.raises(BackboneError, match=r"tensor lm_head.weight is in two"):
        load(str(folder))


def test_a_truncated_shard_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write_shards(tmp_path) / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BackboneError, match=r"model-00002-of-00003.safetensors is not a sound safetensors file"):
        load(str(tmp_path))
