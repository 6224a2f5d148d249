"""Live comparison of the text families with transformers + torch: random tiny configurations with padding."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.backbones.backbone import Backbone, load
from mmrec_jax.backbones.family import Tokens
from mmrec_jax.backbones.pooling import pool
from mmrec_jax.backbones.text import read_text_preprocessor
from tests.tiny_backbones import BYTE_LEVEL_TEXTS, write_byte_level, write_tokenizer

torch = pytest.importorskip("torch", reason="live parity needs the `parity` extra (torch)")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.parity,
    # Deprecations inside torch and transformers are not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

LONGEST = 33
END = 3  # stands at the end of every text and nowhere else, as CLIP's end-of-text token


def random_config(family: str, seed: int):
    """A configuration with odd sizes, drawn from a seed."""
    rng = np.random.default_rng(seed)
    heads = int(rng.choice([1, 2, 3, 4, 6]))
    sizes = {
        "vocab_size": 60,
        "hidden_size": heads * 2 * int(rng.integers(2, 6)),
        "num_attention_heads": heads,
        "num_hidden_layers": int(rng.integers(1, 5)),
        "intermediate_size": int(rng.integers(5, 50)),
        "hidden_act": str(rng.choice(["gelu", "gelu_new", "relu", "silu", "quick_gelu"])),
        "initializer_range": 0.3,
        "pad_token_id": int(rng.integers(0, 3)),
        "bos_token_id": 2,
        "eos_token_id": END,
    }
    epsilon = float(rng.choice([1e-12, 1e-6, 1e-3]))
    if family in ("roberta", "xlm-roberta", "camembert"):
        positions = LONGEST + sizes["pad_token_id"] + 1
        more = {
            "max_position_embeddings": positions,
            "type_vocab_size": int(rng.integers(1, 3)),
            "layer_norm_eps": epsilon,
        }
        return transformers.AutoConfig.for_model(family, **sizes, **more)
    if family == "distilbert":
        ours = ("hidden_size", "dim"), ("num_attention_heads", "n_heads"), ("num_hidden_layers", "n_layers")
        for key, name in (*ours, ("intermediate_size", "hidden_dim"), ("hidden_act", "activation")):
            sizes[name] = sizes.pop(key)
        return transformers.DistilBertConfig(**sizes, max_position_embeddings=LONGEST)
    if family == "clip_text_model":
        return transformers.CLIPTextConfig(**sizes, max_position_embeddings=LONGEST, layer_norm_eps=epsilon)
    rotary = [
        {"rope_type": "default", "rope_theta": 1000.0},
        {"rope_type": "linear", "rope_theta": 50.0, "factor": 3.0},
        {
            "rope_type": "llama3",
            "rope_theta": 50.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ][seed % 3]
    shared = [divisor for divisor in range(1, heads + 1) if heads % divisor == 0]
    sizes |= {"num_key_value_heads": int(rng.choice(shared)), "rope_parameters": rotary, "rms_norm_eps": epsilon}
    if family == "qwen2":
        return transformers.Qwen2Config(**sizes)
    more = {
        "head_dim": 2 * int(rng.integers(2, 6)),
        "attention_bias": bool(seed % 2),
        "mlp_bias": bool(rng.integers(2)),
    }
    return transformers.LlamaConfig(**sizes, **more)


def random_tokens(rng: np.random.Generator, padding: int, length: int, rows: int = 3) -> Tokens:
    lengths = np.linspace(length, 1, rows).astype(int)[:, None]
    ids = np.where(np.arange(length) < lengths, rng.integers(END + 1, 60, (rows, length)), padding)
    ids[np.arange(rows), lengths[:, 0] - 1] = END
    return Tokens(jnp.asarray(ids), jnp.asarray(np.arange(length) < lengths))


def randomise(model) -> None:
    """Gives norms and biases values that a wrong mapping would show."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape)


def final_state(backbone: Backbone, state):
    return backbone.model.apply({"params": backbone.params}, state, method="final_norm")


def assert_equal_layers(backbone: Backbone, model, tokens: Tokens) -> None:
    """Each layer within 1e-4 of its largest value, and the last one after its normalisation too."""
    ids, mask = (torch.tensor(np.asarray(x)).long() for x in (tokens.ids, tokens.mask))
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    states = backbone.hidden_states(tokens)
    made = [*states, final_state(backbone, states[-1])]
    for layer, (state, truth) in enumerate(zip(made, [*output.hidden_states, output.last_hidden_state], strict=True)):
        assert np.abs(np.asarray(state) - truth.numpy()).max() < 1e-4 * truth.abs().max(), f"layer {layer}"
    if model.config.model_type == "clip_text_model":
        pooled = pool(made[-1], tokens.mask, "last")
        np.testing.assert_allclose(pooled, output.pooler_output, atol=1e-4 * float(output.pooler_output.abs().max()))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "family", ["roberta", "xlm-roberta", "camembert", "distilbert", "clip_text_model", "llama", "qwen2"]
)
def test_random_tiny_configurations_give_equal_layers(family: str, seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    config = random_config(family, seed)
    model = transformers.AutoModel.from_config(config).eval()
    randomise(model)
    # Small shards make an index; every second one is saved whole.
    model.save_pretrained(tmp_path, max_shard_size="5KB" if seed % 2 else "1GB")
    write_tokenizer(tmp_path / "tokenizer.json")
    backbone = load(str(tmp_path))
    rng = np.random.default_rng(seed)
    for length in (1, 7, LONGEST):
        assert_equal_layers(backbone, model, random_tokens(rng, config.pad_token_id, length))


def test_the_text_tower_of_a_whole_clip_gives_equal_layers(tmp_path: Path) -> None:
    tiny = {"hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 40}
    text = {**tiny, "vocab_size": 60, "max_position_embeddings": LONGEST, "eos_token_id": END, "pad_token_id": 1}
    image = {**tiny, "image_size": 14, "patch_size": 7}
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=image)).eval()
    randomise(model)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path / "tokenizer.json")
    tokens = random_tokens(np.random.default_rng(0), 1, 9)
    assert_equal_layers(load(str(tmp_path), kind="text"), model.text_model, tokens)


@pytest.mark.parametrize("family", ["llama", "qwen2", "roberta"])
def test_bfloat16_is_as_near_to_float32_as_in_transformers(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = random_config(family, 2)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path / "tokenizer.json")
    tokens = random_tokens(np.random.default_rng(0), config.pad_token_id, LONGEST)
    ids, mask = (torch.tensor(np.asarray(x)).long() for x in (tokens.ids, tokens.mask))
    with torch.no_grad():
        exact = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
        half = model.to(torch.bfloat16)(input_ids=ids, attention_mask=mask).last_hidden_state.float().numpy()
    ours = np.asarray(load(str(tmp_path), dtype="bfloat16").hidden_states(tokens)[-1], np.float32)
    # Both round at the same places but for some; twice their error leaves room for chance.
    assert np.sqrt(np.square(ours - exact).mean()) < 2 * np.sqrt(np.square(half - exact).mean())


def test_tokens_of_older_files_equal_those_of_transformers(tmp_path: Path) -> None:
    folder = write_byte_level(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [*BYTE_LEVEL_TEXTS, "", "class A(B): return 'x'  # 1.5e3", "a<mask> b</s>"]
    for text, ids in zip(texts, read_text_preprocessor(folder, 12)(texts), strict=True):
        assert ids.tolist() == theirs(text.strip(), truncation=True, max_length=12)["input_ids"], text
