"""Live comparison of the audio families with transformers + torch: random sizes, padding, real recordings."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mmrec_jax.backbones.audio import read_audio
from mmrec_jax.backbones.audio_features import read_audio_preprocessor
from mmrec_jax.backbones.backbone import Backbone, load
from mmrec_jax.backbones.family import Sound

torch = pytest.importorskip("torch", reason="live parity needs the `parity` extra (torch)")
transformers = pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.parity,
    # Deprecations inside torch and transformers are not ours to mend.
    pytest.mark.filterwarnings("ignore"),
]


def random_sizes(rng: np.random.Generator) -> dict:
    heads = int(rng.choice([1, 2, 3, 4]))
    return {
        "hidden_size": 6 * heads * int(rng.integers(1, 3)),
        "num_attention_heads": heads,
        "num_hidden_layers": int(rng.integers(1, 5)),
        "intermediate_size": int(rng.integers(5, 50)),
        "hidden_act": str(rng.choice(["gelu", "gelu_new", "relu"])),
    }


def random_ast(seed: int):
    rng = np.random.default_rng(seed)
    return transformers.ASTConfig(
        **random_sizes(rng),
        layer_norm_eps=float(rng.choice([1e-12, 1e-5])),
        qkv_bias=bool(seed % 2),
        patch_size=int(rng.integers(3, 8)),
        time_stride=int(rng.integers(1, 6)),
        frequency_stride=int(rng.integers(1, 6)),
        max_length=int(rng.integers(20, 40)),
        num_mel_bins=int(rng.integers(8, 20)),
        initializer_range=0.3,
    )


def random_whisper(seed: int):
    rng = np.random.default_rng(seed)
    sizes = random_sizes(rng)
    return transformers.WhisperConfig(
        d_model=sizes["hidden_size"],
        encoder_layers=sizes["num_hidden_layers"],
        encoder_attention_heads=sizes["num_attention_heads"],
        encoder_ffn_dim=sizes["intermediate_size"],
        activation_function=sizes["hidden_act"],
        num_mel_bins=int(rng.integers(3, 10)),
        max_source_positions=100 * int(rng.integers(1, 3)) // 2,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=8,
        vocab_size=60,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.3,
    )


def random_waveform(kind: type, norm: str, stable: bool, seed: int):
    rng = np.random.default_rng(seed)
    more = {"feat_proj_layer_norm": bool(seed % 2)} if kind is transformers.HubertConfig else {}
    return kind(
        **random_sizes(rng),
        **more,
        layer_norm_eps=float(rng.choice([1e-12, 1e-5])),
        conv_dim=tuple(int(width) for width in rng.integers(3, 12, 3)),
        conv_kernel=(int(rng.integers(3, 8)), 3, 2),
        conv_stride=(int(rng.integers(2, 4)), 2, int(rng.integers(1, 3))),
        conv_bias=bool(rng.integers(2)),
        feat_extract_norm=norm,
        feat_extract_activation=str(rng.choice(["gelu", "relu"])),
        do_stable_layer_norm=stable,
        num_conv_pos_embeddings=int(rng.integers(2, 12)),
        num_conv_pos_embedding_groups=3,
        initializer_range=0.3,
    )


def make(kind: type, config, seed: int, folder: Path, settings: dict) -> tuple[Backbone, torch.nn.Module]:
    """A random model of ours and theirs."""
    torch.manual_seed(seed)
    model = kind(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "token" in name or "original0" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return load(str(folder)), model.base_model


def states_of(model: torch.nn.Module, values: np.ndarray, **more) -> tuple[list[np.ndarray], np.ndarray]:
    with torch.no_grad():
        output = model(torch.tensor(values), **more, output_hidden_states=True)
    return [state.numpy() for state in output.hidden_states], output.last_hidden_state.numpy()


def assert_equal(backbone: Backbone, sound: Sound, expected: list[np.ndarray], last: np.ndarray) -> None:
    """Each layer within 1e-4 of its largest value, and the last one after its normalisation too."""
    states = backbone.hidden_states(sound)
    assert len(states) == len(expected)
    final = backbone.model.apply({"params": backbone.params}, states[-1], method="final_norm")
    for layer, (state, truth) in enumerate(zip([*states, final], [*expected, last], strict=True)):
        assert np.abs(np.asarray(state) - truth).max() < 1e-4 * np.abs(truth).max(), f"layer {layer}"


@pytest.mark.parametrize("seed", range(3))
def test_random_ast_gives_equal_layers(seed: int, tmp_path: Path) -> None:
    config = random_ast(seed)
    settings = {"max_length": config.max_length, "num_mel_bins": config.num_mel_bins}
    kind = (transformers.ASTModel, transformers.ASTForAudioClassification)[seed % 2]
    backbone, model = make(kind, config, seed, tmp_path, settings)
    values = np.random.default_rng(seed).normal(size=(2, config.max_length, config.num_mel_bins)).astype(np.float32)
    assert_equal(backbone, Sound(jnp.asarray(values), jnp.asarray([5, 20])), *states_of(model, values))


@pytest.mark.parametrize("seed", range(3))
def test_random_whisper_gives_equal_layers(seed: int, tmp_path: Path) -> None:
    config = random_whisper(seed)
    settings = {"feature_size": config.num_mel_bins, "chunk_length": config.max_source_positions // 50}
    kinds = (
        transformers.WhisperModel,
        transformers.WhisperForConditionalGeneration,
        transformers.WhisperForAudioClassification,
    )
    backbone, model = make(kinds[seed], config, seed, tmp_path, settings)
    shape = (2, 2 * config.max_source_positions, config.num_mel_bins)
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    expected = states_of(model.encoder, values.swapaxes(1, 2))
    assert_equal(backbone, Sound(jnp.asarray(values), jnp.asarray([5, 90])), *expected)


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert"])
def test_random_waveform_encoders_give_equal_layers(model_type: str, norm: str, stable: bool, tmp_path: Path) -> None:
    seed = 4 * (model_type == "hubert") + 2 * (norm == "layer") + stable
    kinds = {
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2ForPreTraining),
        "hubert": (transformers.HubertConfig, transformers.HubertForCTC),
    }
    config_kind, kind = kinds[model_type]
    backbone, model = make(kind, random_waveform(config_kind, norm, stable, seed), seed, tmp_path, {})
    lengths = np.asarray([301, 160, 60])
    inside = np.arange(301) < lengths[:, None]
    values = np.where(inside, np.random.default_rng(seed).normal(size=inside.shape), 0).astype(np.float32)
    # As models of group normalisation are used: no mask, all of it heard.
    assert_equal(backbone, Sound(jnp.asarray(values), jnp.asarray([301] * 3)), *states_of(model, values))
    padded = Sound(jnp.asarray(values), jnp.asarray(lengths))
    if norm == "layer":
        assert_equal(backbone, padded, *states_of(model, values, attention_mask=torch.tensor(inside).long()))
    # And each recording gives in a batch what it gives alone.
    together = backbone.hidden_states(padded)
    mask = np.asarray(backbone.model.apply({"params": backbone.params}, padded, method="token_mask"))
    for row, length in enumerate(lengths):
        alone, _ = states_of(model, values[row : row + 1, :length])
        for layer, (state, truth) in enumerate(zip(together, alone, strict=True)):
            found = np.asarray(state)[row][mask[row]]
            assert found.shape == truth[0].shape
            assert np.abs(found - truth[0]).max() < 1e-4 * np.abs(truth).max(), f"layer {layer} of {length} samples"


EXTRACTORS = {
    "whisper": ("WhisperFeatureExtractor", {}),
    "whisper_128": ("WhisperFeatureExtractor", {"feature_size": 128}),
    "whisper_odd": (
        "WhisperFeatureExtractor",
        {"n_fft": 360, "hop_length": 100, "chunk_length": 5, "feature_size": 40},
    ),
    "ast": ("ASTFeatureExtractor", {}),
    "ast_odd": ("ASTFeatureExtractor", {"num_mel_bins": 31, "max_length": 77, "mean": 1.0, "std": 2.0}),
    "ast_plain": ("ASTFeatureExtractor", {"do_normalize": False}),
    "wav2vec2": ("Wav2Vec2FeatureExtractor", {}),
    "wav2vec2_plain": ("Wav2Vec2FeatureExtractor", {"do_normalize": False}),
}


@pytest.mark.parametrize("name", EXTRACTORS)
def test_features_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    kind, settings = EXTRACTORS[name]
    theirs = getattr(transformers, kind)(**settings)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    ours = read_audio_preprocessor(tmp_path, 600.0)
    rng = np.random.default_rng(0)
    for length in (400, 401, 5001, 90_000, 481_000):
        time = np.arange(length) / 16_000
        sound = 0.3 * np.sin(2000 * time**1.5) + 0.01 * np.sin(3 * time) * rng.normal(size=length)
        sound = sound.astype(np.float32)
        (found,) = theirs(sound, sampling_rate=16_000).values()
        expected = np.asarray(found)[0]
        expected = expected.T if "whisper" in name else expected
        made = ours.batch([ours(sound)], 1).values[0, : len(expected)]
        np.testing.assert_allclose(made, expected, atol=1e-4, err_msg=f"{length} samples")


@pytest.mark.shared
def test_the_real_whisper_gives_equal_features_and_layers_on_recordings(shared: Path) -> None:
    folder = shared / "weights" / "whisper-tiny-en-encoder"
    backbone = load(str(folder))
    model = transformers.WhisperModel.from_pretrained(folder, dtype=torch.float32).encoder.eval()
    extract = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    paths = sorted((shared / "data" / "spoken-digits" / "recordings").glob("*.wav"))[::150]
    features = extract([read_audio(path, 16_000, 30) for path in paths], sampling_rate=16_000, return_tensors="np")
    sound = backbone.preprocess.batch([backbone.preprocess.read(path) for path in paths], len(paths))
    expected = features["input_features"]
    np.testing.assert_allclose(np.asarray(sound.values).swapaxes(1, 2), expected, atol=1e-4)
    assert_equal(backbone, sound, *states_of(model, expected))
