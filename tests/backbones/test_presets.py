"""The published sizes, against the parameter counts that their authors or hubs give."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import pytest

from mmrec_jax.backbones.registry import find_family, known_families, preset
from mmrec_jax.errors import BackboneError

# Published counts, less what hidden states do not need: poolers (width^2 + width) and heads of language modelling.
COUNTS = {
    "bert-base-uncased": 109_482_240 - (768 * 768 + 768),
    "all-MiniLM-L6-v2": 22_713_216 - (384 * 384 + 384),
    "roberta-base": 124_645_632 - (768 * 768 + 768),
    "xlm-roberta-base": 278_043_648 - (768 * 768 + 768),
    "distilbert-base-uncased": 66_362_880,
    "clip-vit-base-patch32-text": 63_165_952,
    "llama-3-8b": 8_030_261_248 - 128_256 * 4096,
    "llama-3.2-1b": 1_235_814_400,
    "qwen2-0.5b": 494_032_768,
    "qwen2-7b": 7_615_616_512 - 152_064 * 3584,
    # Images: less the classifiers, mask tokens, and heads of the contrastive loss.
    "vit-base-patch16-224": 86_567_656 - 769_000,
    "deit-base-distilled-patch16-224": 87_338_192 - 2 * 769_000,
    "dinov2-small": 22_056_576 - 384,
    "dinov2-giant": 1_136_480_768 - 1536,
    "dinov2-with-registers-small": 22_058_112 - 384,
    "clip-vit-base-patch32-image": 151_277_313 - 63_165_952 - 768 * 512 - 512 * 512 - 1 - 2 * 768,
    "clip-vit-large-patch14-image": 427_616_513 - 123_060_480 - 1024 * 768 - 768 * 768 - 1 - 2 * 1024,
    "siglip-base-patch16-224-image": 92_884_224 - 7_087_104,
    "siglip-so400m-patch14-384-image": 428_225_600 - 15_238_352,
    "videomae-base-finetuned-kinetics": 86_534_800 - 400 * 769 - 2 * 768,
    # Less the masked state, and the gains of weight normalisation, which are multiplied into their kernel.
    "wav2vec2-base": 94_371_712 - 768 - 128,
    "hubert-large": 315_438_720 - 1024 - 128,
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_has_as_many_parameters_as_published(name: str) -> None:
    config = preset(name)
    encoder = find_family(config["model_type"], name).build(config, None)
    shapes = jax.eval_shape(encoder.module.init, jax.random.key(0), encoder.example)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == COUNTS[name]


def test_every_preset_can_be_built_and_has_a_name_of_its_own() -> None:
    seen: dict[str, str] = {}
    for (model_type, kind), family in known_families().items():
        for name, config in family.presets.items():
            assert seen.setdefault(name, kind) == kind, name
            assert config["model_type"] == model_type, name
            assert family.build(preset(name), None).transformer.depth > 1


def test_the_family_that_the_documentation_adds_is_one() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "backbones.md"
    (example,) = re.findall(r"^```python\n(\"\"\"ELECTRA.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    names: dict = {}
    exec(compile(example, "electra.py", "exec"), names)
    (family,) = names["FAMILIES"]
    encoder = family.build(family.presets["electra-base-discriminator"], None)
    shapes = jax.eval_shape(encoder.module.init, jax.random.key(0), encoder.example)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 108_891_648
    sources = {source for weight in encoder.weight_map.weights for source in weight.sources}
    assert encoder.weight_map.name("electra.encoder.layer.11.output.LayerNorm.weight") in sources


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(BackboneError, match=r"no preset is named 'bert'; known are .*bert-base-uncased"):
        preset("bert")
