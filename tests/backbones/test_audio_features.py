"""Samples to what audio encoders take: spectrograms, padding, settings; and which tokens are counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mmrec_jax.backbones.audio_features import Waveform, read_audio_preprocessor, receptive_field
from mmrec_jax.backbones.backbone import Backbone, identify, load
from mmrec_jax.backbones.config import ModalityConfig
from mmrec_jax.backbones.encode import Head, PooledEncoder
from mmrec_jax.backbones.family import Sound
from mmrec_jax.backbones.medium import MediaError
from mmrec_jax.backbones.spectrogram import kaldi_filters, slaney_filters, whisper_floor
from mmrec_jax.errors import BackboneError, ConfigError
from tests.tiny_backbones import golden, golden_weights, write_backbone

MODEL_TYPES = {"whisper": "whisper", "whisper_128": "whisper", "ast": "audio-spectrogram-transformer"}


def settings(folder: Path, content: dict | str, **config) -> Path:
    """A folder with preprocessor_config.json and config.json."""
    folder.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "preprocessor_config.json").write_text(text)
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2", **config}))
    return folder


@pytest.mark.parametrize("name", ["whisper", "whisper_128", "ast", "wav2vec2"])
def test_features_and_padding_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    tensors, extractors = golden("audio/features")
    preprocess = read_audio_preprocessor(settings(tmp_path, extractors[name]), 30.0)
    made = preprocess(tensors["samples"])
    batch = preprocess.batch([made], 2)
    assert made.dtype == np.float32
    assert batch.lengths.tolist() == [len(made), 0]
    expected = tensors[name]
    if preprocess.shape:
        assert batch.values.shape == (2, *preprocess.shape) == (2, *expected.shape)
    # What is promised; float32 in torch's Fourier transform gives about 2e-5.
    np.testing.assert_allclose(np.asarray(batch.values)[0, : len(expected)], expected, atol=1e-4)


def test_whispers_features_are_the_frames_that_touch_the_recording(tmp_path: Path) -> None:
    preprocess = read_audio_preprocessor(
        settings(tmp_path, {"feature_extractor_type": "WhisperFeatureExtractor"}), 30.0
    )
    noise = np.random.default_rng(0).normal(size=481_000).astype(np.float32)
    # A frame is 400 samples around each multiple of 160: frame 3 reaches from 280 to 680.
    for samples, frames in ((1, 2), (280, 3), (281, 4), (16_000, 102), (480_000, 3000), (481_000, 3000)):
        made = preprocess(noise[:samples])
        assert made.shape == (frames, 80)
        silence = np.asarray(preprocess.batch([made], 1).values)[0, frames:]
        np.testing.assert_array_equal(silence, np.float32(whisper_floor(made)))
    quiet = preprocess(np.zeros(1000, np.float32))
    np.testing.assert_allclose(quiet, -1.5, rtol=1e-6)  # (-10 + 4) / 4: the smallest power that counts


def test_the_feature_extractor_of_a_whole_processor_is_found(tmp_path: Path) -> None:
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": 7}
    expected = read_audio_preprocessor(settings(tmp_path, extractor), 30.0)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match=r"no preprocessor_config.json"):
        read_audio_preprocessor(tmp_path, 30.0)
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    assert read_audio_preprocessor(tmp_path, 30.0) == expected


def test_mel_filters_peak_where_their_scales_say() -> None:
    frequencies = np.linspace(0, 8000, 201)
    slaney = frequencies[slaney_filters(201, 80, 16_000).argmax(axis=0)]
    # 80 bands over slaney_mel(8000) = 45.2 mels: below 1 kHz the centres are 0.558 mels or 37.2 Hz apart.
    np.testing.assert_allclose(slaney[:20], 37.2 * np.arange(1, 21), atol=25)
    kaldi = kaldi_filters(257, 23)
    mels = 1127 * np.log1p(np.linspace(0, 8000, 257) / 700)
    centres = np.linspace(mels[0] + 1127 * np.log1p(20 / 700), mels[-1], 25)[1:-1]
    np.testing.assert_allclose(mels[kaldi.argmax(axis=0)], centres, atol=25)
    # Neighbouring triangles of Kaldi's sum to one between the first and the last centre.
    inside = (mels > centres[0]) & (mels < centres[-1])
    np.testing.assert_allclose(kaldi.sum(axis=1)[inside], 1, atol=1e-9)


def test_waveforms_are_cut_normalised_and_padded_to_few_lengths() -> None:
    preprocess = Waveform(rate=16_000, shortest=400, longest=50_000, normalised=True)
    noise = (3 + 2 * np.random.default_rng(0).normal(size=60_000)).astype(np.float32)
    made = preprocess(noise)
    assert len(made) == 50_000
    assert abs(made.mean()) < 1e-5
    assert made.var() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(preprocess(np.full(500, 0.3, np.float32)), np.zeros(500, np.float32))
    lengths = {preprocess.batch([np.zeros(n, np.float32)], 1).values.shape[1] for n in range(400, 50_001, 100)}
    assert lengths == {*range(4000, 32_001, 4000), *range(40_000, 48_001, 8000), 50_000}


def test_a_recording_that_fills_no_window_is_too_short(tmp_path: Path) -> None:
    waveform = read_audio_preprocessor(settings(tmp_path, {}), 30.0)
    assert waveform.shortest == receptive_field((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)) == 400
    kaldi = read_audio_preprocessor(settings(tmp_path, {"feature_extractor_type": "ASTFeatureExtractor"}), 30.0)
    for preprocess in (waveform, kaldi):
        assert len(preprocess(np.ones(400, np.float32))) in (400, 1)
        with pytest.raises(MediaError, match="too short: 399 samples at 16000 Hz, at least 400 are needed"):
            preprocess(np.ones(399, np.float32))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ({"feature_extractor_type": "ClapFeatureExtractor"}, "'ClapFeatureExtractor' is unknown; known are AST"),
        ({"feature_extractor_type": "WhisperFeatureExtractor", "dither": 0.1}, "dither is 0.1"),
        ({"feature_extractor_type": "WhisperFeatureExtractor", "n_fft": "400"}, "n_fft is '400'"),
        ({"feature_extractor_type": "ASTFeatureExtractor", "sampling_rate": 8000}, "sampling_rate is 8000"),
        ({"feature_extractor_type": "ASTFeatureExtractor", "std": 0}, "std is 0"),
        ({"feature_extractor_type": "ASTFeatureExtractor", "mean": "low"}, "low"),
        ({"feature_size": 2}, "feature_size is not 1"),
        ({"sampling_rate": 0}, "sampling_rate is 0"),
    ],
)
def test_settings_that_cannot_be_used_say_which(content: dict | str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=message):
        read_audio_preprocessor(settings(tmp_path, content), 30.0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ast", {"patch_size": 21}, "patches of 21 do not fit into 38 frames of 20 bins"),
        ("whisper", {"d_model": 25}, "do not divide the width 25"),
        ("wav2vec2", {"conv_dim": [9, 10]}, "not of the same length"),
        ("wav2vec2", {"conv_stride": 3}, "conv_stride is 3"),
        ("wav2vec2", {"feat_extract_norm": "batch"}, "feat_extract_norm 'batch'"),
        ("wav2vec2", {"num_conv_pos_embedding_groups": 7}, "7 groups .* do not divide the width 24"),
        ("wav2vec2", {"adapter_attn_dim": 8}, "adapter_attn_dim"),
        ("hubert", {"conv_pos_batch_norm": True}, "conv_pos_batch_norm"),
        ("hubert", {"feat_proj_layer_norm": True}, "feature_projection.layer_norm.weight is missing"),
    ],
)
def test_a_config_that_cannot_be_built_says_which_key(name: str, changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=message):
        load(str(write_backbone(tmp_path, name, **changes)))


@pytest.mark.parametrize(
    ("name", "extractor", "message"),
    [
        ("ast", {"max_length": 39, "num_mel_bins": 20}, "spectrograms of 39 frames with 20 bins, but .* 38 frames"),
        ("whisper", {"feature_size": 80}, "spectrograms of 3000 frames with 80 bins, but .* 100 frames with 8 bins"),
        ("whisper", {"feature_extractor_type": "Wav2Vec2FeatureExtractor"}, "makes samples, but"),
        ("wav2vec2", {"feature_extractor_type": "WhisperFeatureExtractor"}, "takes samples"),
    ],
)
def test_features_of_another_size_than_the_encoders_are_refused(
    name: str, extractor: dict, message: str, tmp_path: Path
) -> None:
    folder = write_backbone(tmp_path, name)
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    with pytest.raises(BackboneError, match=message):
        load(str(folder))


def test_the_bound_on_seconds_is_part_of_the_fingerprint_up_to_the_encoders_window(tmp_path: Path) -> None:
    waveform, whisper = write_backbone(tmp_path / "a", "wav2vec2"), write_backbone(tmp_path / "b", "whisper")
    loaded = load(str(waveform), max_seconds=2.0)
    assert loaded.preprocess.fingerprint == {
        "features": "Waveform", "rate": 16_000, "shortest": 17, "longest": 32_000, "normalised": True
    }  # fmt: skip
    assert identify(str(waveform), "audio", 0, max_seconds=2.0)["preprocessing"] == loaded.preprocess.fingerprint
    assert identify(str(waveform), "audio", 0, max_seconds=3.0)["preprocessing"] != loaded.preprocess.fingerprint
    # Its window is 1 s.
    assert identify(str(whisper), "audio", 0, max_seconds=2.0) == identify(str(whisper), "audio", 0, max_seconds=3.0)
    for seconds in (0.0, -1.0, 601.0):
        with pytest.raises(ConfigError, match="max_seconds"):
            ModalityConfig("audio", "x", column="a", max_seconds=seconds)


def test_reading_media_needs_no_jax() -> None:
    program = "import sys, mmrec_jax.backbones.audio_features\nassert not {'jax', 'av', 'torch'} & set(sys.modules)\n"
    environment = {"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Backbone]:
    names = ("ast", "whisper", "wav2vec2", "hubert")
    return {name: load(str(write_backbone(tmp_path_factory.mktemp(name), name))) for name in names}


@pytest.mark.parametrize("name", ["wav2vec2", "hubert"])
def test_a_recording_has_the_same_states_alone_and_padded_in_a_batch(name: str, backbones: dict[str, Backbone]) -> None:
    backbone = backbones[name]
    noise = np.random.default_rng(0).normal(size=(3, 200)).astype(np.float32)
    # Whatever lies in the padding is not heard.
    together = backbone.hidden_states(Sound(jnp.asarray(noise), jnp.asarray([200, 101, 0])))
    assert all(np.isfinite(state).all() for state in together)
    alone = backbone.hidden_states(Sound(jnp.asarray(noise[1:2, :101]), jnp.asarray([101])))
    for one, many in zip(alone, together, strict=True):
        # Sums of another length may round otherwise.
        np.testing.assert_allclose(many[1, : one.shape[1]], one[0], atol=1e-5 * float(np.abs(one).max()))


def test_only_tokens_of_the_recording_are_counted(backbones: dict[str, Backbone]) -> None:
    def counted(name: str, lengths: list[int]) -> list[int]:
        backbone = backbones[name]
        shape = backbone.preprocess.shape or (301,)
        sound = Sound(jnp.zeros((len(lengths), *shape)), jnp.asarray(lengths))
        mask = np.asarray(backbone.model.apply({"params": backbone.params}, sound, method="token_mask"))
        return mask.sum(axis=1).tolist()

    # Patches begin each 4 of 38 frames, 8 in all, in each of 5 bands; two tokens stand before them.
    assert counted("ast", [38, 9, 4, 0]) == [2 + 8 * 5, 2 + 3 * 5, 2 + 5, 2]
    # A token is two frames.
    assert counted("whisper", [100, 33, 1, 0]) == [50, 17, 1, 0]
    # Convolutions of 5, 3 and 2 at strides 3, 2 and 2: a token sees 17 samples, each 12.
    assert counted("wav2vec2", [301, 29, 28, 17, 16, 0]) == [24, 2, 1, 1, 0, 0]


def test_pooled_states_of_recordings_of_many_lengths_come_in_their_order(backbones: dict[str, Backbone]) -> None:
    rng = np.random.default_rng(0)
    for name in ("wav2vec2", "whisper"):
        backbone = backbones[name]
        recordings = [backbone.preprocess(rng.normal(size=n).astype(np.float32)) for n in (900, 40, 500, 1000, 17)]
        (pooled,) = PooledEncoder(backbone, [Head((0, 2), "mean")], batch=2)(recordings)
        batch = backbone.preprocess.batch(recordings, 5)
        states = backbone.hidden_states(batch)
        mask = np.asarray(backbone.model.apply({"params": backbone.params}, batch, method="token_mask"))
        for row in range(5):
            expected = np.stack([np.asarray(states[k])[row][mask[row]].mean(axis=0) for k in (0, 2)])
            np.testing.assert_allclose(pooled[row], expected, atol=1e-4 * np.abs(expected).max())


def test_the_class_token_of_ast_is_the_mean_of_both_and_others_have_none(backbones: dict[str, Backbone]) -> None:
    ast = backbones["ast"]
    recording = ast.preprocess(np.random.default_rng(0).normal(size=5000).astype(np.float32))
    (pooled,) = PooledEncoder(ast, [Head((2,), "cls")], batch=1)([recording])
    last = np.asarray(ast.hidden_states(ast.preprocess.batch([recording], 1))[2])
    np.testing.assert_allclose(pooled[0, 0], (last[0, 0] + last[0, 1]) / 2, atol=1e-5 * np.abs(last).max())
    for name in ("whisper", "wav2vec2", "hubert"):
        with pytest.raises(ConfigError, match=f"'cls': .*{name}.* has no class token; use 'mean'"):
            PooledEncoder(backbones[name], [Head((2,), "cls")], batch=1)


def test_the_older_names_of_weight_normalisation_are_known(backbones: dict[str, Backbone], tmp_path: Path) -> None:
    weights = golden_weights(golden("wav2vec2")[0])
    conv = "wav2vec2.encoder.pos_conv_embed.conv"
    older = {f"{conv}.parametrizations.weight.original{n}": f"{conv}.weight_{'gv'[n]}" for n in (0, 1)}
    renamed = {older.get(name, name): tensor for name, tensor in weights.items()}
    assert renamed.keys() != weights.keys()
    loaded = load(str(write_backbone(tmp_path, "wav2vec2", renamed))).params
    expected = backbones["wav2vec2"].params
    np.testing.assert_array_equal(loaded["positions"]["kernel"], expected["positions"]["kernel"])
    # Each place in time has the length that its gain says.
    gain = weights[f"{conv}.parametrizations.weight.original0"][0, 0]
    norms = np.sqrt((np.asarray(expected["positions"]["kernel"]) ** 2).sum(axis=(1, 2)))
    np.testing.assert_allclose(norms, gain, rtol=1e-5)
    save_file(weights | renamed, tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match="one and the same parameter"):
        load(str(tmp_path))
