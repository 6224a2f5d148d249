"""The config for pods: four base-size backbones, ten million items."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

import pytest

from mmrec_jax.config import resolve
from mmrec_jax.errors import ConfigError, PlanningError
from mmrec_jax.planning.backbones import backbone_shapes, head_of, input_shapes, published
from mmrec_jax.planning.shapes import axes, chosen_sizes

CONFIG = Path(__file__).resolve().parent.parent.parent / "configs" / "pod.py"


def config_of(argument: str = ""):
    return resolve(runpy.run_path(str(CONFIG))["get_config"](argument))


def test_its_backbones_are_of_base_size_and_known_without_their_files():
    config = config_of()
    assert {part.kind for part in config.modalities.values()} == {"text", "image", "video", "audio"}
    for modality in config.modalities.values():
        backbone = backbone_shapes(modality)
        assert (backbone.sizes.width, backbone.sizes.depth) == (768, 12)
        assert len(head_of(modality, backbone).layers) == 4


def test_a_batch_names_as_many_items_as_it_can():
    config = config_of()
    sizes = chosen_sizes(config)
    assert (sizes.items, sizes.batch) == (10_000_000, 8192)
    assert sizes.distinct == 8192 * 11 + 1
    assert axes(config, sizes, None) == (90128, 81920)


def test_lora_is_in_every_backbone_and_nothing_is_cached():
    config = config_of("lora")
    assert {method.kind for method in config.methods.values()} == {"lora"}
    assert not config.cached


def test_another_argument_is_an_error():
    with pytest.raises(ConfigError, match="lora"):
        config_of("lorra")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("image", (6, 224, 224, 3)), ("video", (6, 16, 224, 224, 3)), ("audio", (6, 160_000)), ("title", (3, 64))],
)
def test_inputs_have_the_encoders_sizes(name, shape):
    modality = config_of().modalities[name]
    made, _ = input_shapes(modality, backbone_shapes(modality), 6, tokens=24, packs=True)
    # Six texts of 24 tokens fill three rows of 64.
    assert (made if name in ("image", "video") else made.ids if name == "title" else made.values).shape == shape


def test_a_backbone_of_which_nothing_is_known_is_an_error_with_the_known_ones():
    unknown = dataclasses.replace(config_of().modalities["title"], backbone="nobody/knows")
    with pytest.raises(PlanningError, match="bert-base-uncased"):
        published(unknown)
