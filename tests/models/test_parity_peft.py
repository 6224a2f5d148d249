"""LoRA against the `peft` library: states, gradients, and its files both ways for every family."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file

from mmrec_jax.adapters.config import MethodConfig
from mmrec_jax.adapters.embedded import EmbeddedMethod, join
from mmrec_jax.adapters.peft_files import export_lora, import_lora
from mmrec_jax.backbones.backbone import load
from mmrec_jax.backbones.family import Sound, Tokens
from mmrec_jax.backbones.transformer import PROJECTIONS
from tests.backbones.test_hidden_states import FAMILIES, case_inputs
from tests.models.test_peft_files import METHOD, random_part
from tests.tiny_backbones import golden, write_backbone, write_tokenizer

pytest.importorskip("torch", reason="live parity needs the `parity` extra (torch, peft)")
pytest.importorskip("peft", reason="live parity needs the `parity` extra (torch, peft)")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # torch, transformers and peft warn of their own affairs
]
IDS = np.asarray([[2, 9, 14, 3, 7], [2, 5, 3, 0, 0]])
SEEN = np.asarray([[True] * 5, [True] * 3 + [False] * 2])
PAIRS = {"clip text": ("text", "text_model"), "clip image": ("image", "vision_model")}
PAIRS["siglip image"] = PAIRS["clip image"]
QUERIES, VALUES = ("query", "q_proj", "q_lin"), ("value", "v_proj", "v_lin")
EVERYWHERE = replace(METHOD, targets=tuple(sorted(PROJECTIONS)), layers=())


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write_backbone(tmp_path / "bert")


def family_folder(folder: Path, name: str) -> tuple[Path, str, Tokens | Sound | jax.Array, str]:
    """A tiny backbone: its folder, the kind to load, inputs, and where transformers' model has the encoder."""
    if name not in PAIRS:
        return write_backbone(folder, name), "", case_inputs(golden(name)[0], 0), "encoder" if name == "whisper" else ""
    import torch
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"vocab_size": 60, "max_position_embeddings": 20, "pad_token_id": 0, "eos_token_id": 3}
    image = sizes | {"image_size": 28, "patch_size": 14}
    config = AutoConfig.for_model(name.split()[0], text_config=text, vision_config=image)
    AutoModel.from_config(config).save_pretrained(folder)
    write_tokenizer(folder / "tokenizer.json")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 28, 28, 3)), jnp.float32)
    kind, place = PAIRS[name]
    return folder, kind, pixels if kind == "image" else Tokens(jnp.asarray(IDS), jnp.asarray(SEEN)), place


def states_of(encoder, inputs: Tokens | Sound | jax.Array) -> list[np.ndarray]:
    """All hidden states of transformers' encoder."""
    import torch

    if isinstance(inputs, Tokens):
        named = {"input_ids": torch.tensor(np.asarray(inputs.ids)).long()}
        named["attention_mask"] = torch.tensor(np.asarray(inputs.mask)).long()
    elif isinstance(inputs, Sound):
        sound, name = torch.tensor(np.asarray(inputs.values)), encoder.main_input_name
        named = {name: sound.mT if name == "input_features" else sound}
        if getattr(encoder.config, "feat_extract_norm", "") == "layer":
            lengths = torch.tensor(np.asarray(inputs.lengths))
            named["attention_mask"] = torch.arange(sound.shape[1]) < lengths[:, None]
    else:
        named = {"pixel_values": torch.tensor(np.moveaxis(np.asarray(inputs), -1, -3))}
    with torch.no_grad():
        return [state.numpy() for state in encoder(**named, output_hidden_states=True).hidden_states]


def theirs_of(folder: Path, adapter: Path):
    """peft's model over transformers', for training."""
    from peft import PeftModel
    from transformers import AutoModel

    return PeftModel.from_pretrained(AutoModel.from_pretrained(folder), adapter, is_trainable=True).eval()


def test_states_and_gradients_equal_those_of_peft_which_reads_our_files(bert: Path, tmp_path: Path) -> None:
    import torch

    backbone = load(str(bert), method=EmbeddedMethod(METHOD))
    added = random_part(load(str(bert)))
    export_lora(tmp_path / "adapter", backbone, METHOD, added)
    theirs = theirs_of(bert, tmp_path / "adapter")
    output = theirs(torch.tensor(IDS), attention_mask=torch.tensor(SEEN), output_hidden_states=True)
    weights = np.random.default_rng(1).normal(size=(4, 2, 5, backbone.sizes.width)).astype(np.float32) * SEEN[..., None]
    sum((torch.tensor(w) * s).sum() for w, s in zip(weights, output.hidden_states, strict=True)).backward()

    def loss(added):
        states = backbone.model.apply({"params": join(added, backbone.params)}, Tokens(jnp.asarray(IDS), SEEN))
        return sum((w * s).sum() for w, s in zip(weights, states, strict=True)), states

    gradients, states = jax.grad(loss, has_aux=True)(added)
    for state, expected in zip(states, output.hidden_states, strict=True):
        # float32 in another order, through three blocks
        np.testing.assert_allclose(state[SEEN], expected.detach().numpy()[SEEN], rtol=1e-4, atol=2e-5)
    export_lora(tmp_path / "gradients", backbone, METHOD, gradients)
    ours = load_file(tmp_path / "gradients" / "adapter_model.safetensors")
    named = {n.replace(".default", ""): p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert named.keys() == ours.keys()
    for name, expected in named.items():
        wanted = expected.numpy()
        np.testing.assert_allclose(ours[name], wanted, atol=2e-4 * np.abs(wanted).max(), err_msg=name)


def test_files_that_peft_wrote_are_read(bert: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value", "intermediate.dense"])
    theirs = get_peft_model(AutoModel.from_pretrained(bert), config).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "adapter")
    method, added = import_lora(tmp_path / "adapter", load(str(bert)))
    assert method == MethodConfig(kind="lora", targets=("query", "up", "value"), rank=4, alpha=8.0)
    backbone = load(str(bert), method=EmbeddedMethod(method))
    states = backbone.model.apply({"params": join(added, backbone.params)}, Tokens(jnp.asarray(IDS), SEEN))
    expected = theirs(torch.tensor(IDS), attention_mask=torch.tensor(SEEN), output_hidden_states=True).hidden_states
    for state, wanted in zip(states, expected, strict=True):
        np.testing.assert_allclose(state[SEEN], wanted.detach().numpy()[SEEN], rtol=1e-4, atol=2e-5)
    export_lora(tmp_path / "again", backbone, method, added)
    again = import_lora(tmp_path / "again", backbone)
    assert again[0] == method
    flat = traverse_util.flatten_dict(added, sep="/")
    for name, leaf in traverse_util.flatten_dict(again[1], sep="/").items():
        np.testing.assert_array_equal(leaf, flat[name])


@pytest.mark.parametrize("name", [*FAMILIES, *PAIRS])
def test_peft_reads_the_files_of_every_family(name: str, tmp_path: Path) -> None:
    folder, kind, inputs, place = family_folder(tmp_path / "base", name)
    backbone = load(str(folder), kind=kind, method=EmbeddedMethod(EVERYWHERE))
    added = jax.tree.map(lambda leaf: 0.3 * leaf, random_part(backbone, EVERYWHERE))
    export_lora(tmp_path / "adapter", backbone, EVERYWHERE, added)
    theirs = theirs_of(folder, tmp_path / "adapter")
    ours = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    named = {n.replace(".default", ""): p.detach().numpy() for n, p in theirs.named_parameters() if ".lora_" in n}
    assert named.keys() == ours.keys()
    for key, tensor in named.items():
        np.testing.assert_array_equal(tensor, ours[key], err_msg=key)
    states = jax.jit(backbone.model.apply)({"params": join(added, backbone.params)}, inputs)
    expected = states_of(theirs.base_model.model.get_submodule(place), inputs)
    assert len(states) == len(expected)
    for state, wanted in zip(states, expected, strict=True):
        np.testing.assert_allclose(state, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", [*FAMILIES, *PAIRS])
def test_files_that_peft_wrote_are_read_for_every_family(name: str, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    folder, kind, _, place = family_folder(tmp_path / "base", name)
    targets = rf"{place}.*\.({'|'.join(QUERIES + VALUES)})"  # as a user of peft names them
    theirs = get_peft_model(AutoModel.from_pretrained(folder), LoraConfig(r=2, target_modules=targets))
    for key, parameter in theirs.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter)
    theirs.save_pretrained(tmp_path / "adapter")
    backbone = load(str(folder), kind=kind)
    method, added = import_lora(tmp_path / "adapter", backbone)
    assert method == MethodConfig(kind="lora", targets=("query", "value"), rank=2, alpha=8.0)
    for path, leaf in traverse_util.flatten_dict(added, sep="/").items():
        layer, projection, matrix = re.search(r"block_(\d+)/.*added_(\w+)/(\w)", path).groups()
        leaves = QUERIES if projection == "query" else VALUES
        (tensor,) = (
            parameter.detach().numpy()
            for key, parameter in theirs.named_parameters()
            if re.search(rf"\.{layer}\..*\.({'|'.join(leaves)})\.lora_{matrix.upper()}\.", key)
        )
        np.testing.assert_array_equal(leaf, tensor.T, err_msg=path)


def test_peft_refuses_a_model_that_has_the_modules_under_other_names(bert: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForMaskedLM

    backbone = load(str(bert))
    whole = AutoModelForMaskedLM.from_pretrained(bert)
    export_lora(tmp_path / "adapter", backbone, METHOD, random_part(backbone))
    with pytest.raises(ValueError, match=r"[Tt]arget.modules"):
        PeftModel.from_pretrained(whole, tmp_path / "adapter")
    export_lora(tmp_path / "adapter", backbone, METHOD, random_part(backbone), prefix="bert.")
    theirs = PeftModel.from_pretrained(whole, tmp_path / "adapter")
    ours = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    named = {n.replace(".default", ""): p for n, p in theirs.named_parameters() if ".lora_" in n}
    assert named.keys() == ours.keys()
