"""LoRA against the `peft` library: states, gradients, and its files both ways."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mmrec_jax.adapters.config import MethodConfig
from mmrec_jax.adapters.embedded import EmbeddedMethod, join
from mmrec_jax.adapters.peft_files import export_lora, import_lora
from mmrec_jax.backbones.backbone import load
from mmrec_jax.backbones.family import Tokens
from tests.models.test_peft_files import METHOD, random_part
from tests.tiny_backbones import write_backbone

pytest.importorskip("torch", reason="live parity needs the `parity` extra (torch, peft)")
pytest.importorskip("peft", reason="live parity needs the `parity` extra (torch, peft)")

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # torch, transformers and peft warn of their own affairs
]
IDS = np.asarray([[2, 9, 14, 3, 7], [2, 5, 3, 0, 0]])
SEEN = np.asarray([[True] * 5, [True] * 3 + [False] * 2])


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write_backbone(tmp_path / "bert")


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
    from safetensors.numpy import load_file

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
