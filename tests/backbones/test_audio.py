"""Audio files to samples: any container and codec, mono, resampled, cut, and files that are broken."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from mmrec_jax.backbones import audio
from mmrec_jax.backbones.audio import read_audio
from mmrec_jax.backbones.medium import MediaError
from mmrec_jax.errors import ConfigError

av = pytest.importorskip("av", reason="audio needs PyAV (the `media` extra)")

RATE = 16_000
TONE = 500.0  # Hz


def tone(rate: int, seconds: float = 1.0, channels: tuple[float, ...] = (0.5,)) -> np.ndarray:
    """A tone of the given amplitude in each channel, [channel sample]."""
    wave = np.sin(2 * np.pi * TONE * np.arange(round(rate * seconds)) / rate)
    return (np.asarray(channels)[:, None] * wave).astype(np.float32)


def make_audio(path: Path, codec: str, rate: int, samples: np.ndarray, picture: bool = False) -> Path:
    """A file with one audio track, and a video track where there is a picture."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
    with av.open(str(path), "w") as container:
        if picture:
            video = container.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        track = container.add_stream(codec, rate=rate, layout=layout)
        if picture:
            for _ in range(5):
                container.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
            container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=track.format, layout=layout, rate=rate, frame_size=track.frame_size or 1024
        )
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(track.encode(part))
        container.mux(track.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.wav", "pcm_s16le", 8000),
        ("a.wav", "pcm_f32le", 44_100),
        ("a.mp3", "libmp3lame", 22_050),
        ("a.flac", "flac", 48_000),
        ("a.ogg", "libopus", 48_000),
        ("a.m4a", "aac", 44_100),
        ("a.mkv", "ac3", 32_000),
    ],
)
def test_a_tone_sounds_the_same_from_any_container_codec_and_rate(
    name: str, codec: str, rate: int, tmp_path: Path
) -> None:
    path = make_audio(tmp_path / name, codec, rate, tone(rate))
    samples = read_audio(path, RATE, 10)
    assert samples.dtype == np.float32
    # Codecs of music fill up their first and last frame.
    assert abs(len(samples) - RATE) <= 0.09 * RATE
    middle = samples[4000:12_000]
    assert np.argmax(np.abs(np.fft.rfft(middle))) * RATE / len(middle) == TONE
    # The MP3 encoder takes 5% off the amplitude.
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.06)
    np.testing.assert_array_equal(read_audio(path.read_bytes(), RATE, 10), samples)


def test_samples_at_the_files_own_rate_are_its_samples(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(-32_768, 32_768, 3001).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(numbers.tobytes())
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", RATE, 10), numbers / np.float32(32_768))


@pytest.mark.parametrize("channels", [(0.6, 0.2), (0.6, 0.0, 0.0, 0.6, 0.0, 0.0)])
def test_channels_are_mixed_to_their_mean(channels: tuple[float, ...], tmp_path: Path) -> None:
    path = make_audio(tmp_path / "a.wav", "pcm_f32le", RATE, tone(RATE, 0.1, channels))
    # The tone's own rounding to float32.
    np.testing.assert_allclose(read_audio(path, RATE, 10), np.mean(channels) * tone(RATE, 0.1, (1,))[0], atol=1e-6)


def test_many_channels_are_no_danger(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((38, 2, RATE, 0, "NONE", ""))
        file.writeframes(np.repeat(np.arange(0, 16_000, 8, "<i2"), 38).tobytes())
    # The mean of 38 equal values, summed in float32.
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", RATE, 10), np.arange(0, 16_000, 8) / 32_768, atol=1e-6)


def test_the_audio_track_of_a_video_counts(tmp_path: Path) -> None:
    path = make_audio(tmp_path / "a.mp4", "aac", RATE, tone(RATE), picture=True)
    assert np.sqrt((read_audio(path, RATE, 10)[4000:12_000] ** 2).mean()) == pytest.approx(0.354, rel=0.03)


def test_a_long_recording_is_cut_and_no_more_of_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_audio(tmp_path / "a.flac", "flac", RATE, tone(RATE, 20))
    decoded = []
    mean = audio._mean
    monkeypatch.setattr(audio, "_mean", lambda frame: decoded.append(frame.samples) or mean(frame))
    short = read_audio(path, RATE, 1.5)
    assert len(short) == 1.5 * RATE
    assert sum(decoded) < 2 * RATE
    np.testing.assert_array_equal(read_audio(path, RATE, 30)[: len(short)], short)


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame"), ("a.flac", "flac")])
def test_what_comes_before_a_broken_tail_is_used(name: str, codec: str, tmp_path: Path) -> None:
    path = make_audio(tmp_path / name, codec, RATE, tone(RATE, 4))
    whole, content = read_audio(path, RATE, 10), path.read_bytes()
    rest = np.random.default_rng(0).bytes(len(content) // 4)
    for broken in (content[: len(content) * 3 // 4], content[: len(content) * 3 // 4] + rest):
        sound = read_audio(broken, RATE, 10)
        assert len(sound) > 2.5 * RATE
        np.testing.assert_array_equal(sound[: 2 * RATE], whole[: 2 * RATE])


def test_what_cannot_be_heard_is_a_reason_each(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "silent.mp4"), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        container.mux(video.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(video.encode())
    (tmp_path / "zero.mp3").touch()
    (tmp_path / "text.mp3").write_text("<html>not found</html>")
    make_audio(tmp_path / "tone.wav", "pcm_s16le", RATE, tone(RATE))
    header = (tmp_path / "tone.wav").read_bytes()[:80]
    (tmp_path / "header.wav").write_bytes(header[: header.index(b"data") + 8])
    for name, value in (("nan", np.nan), ("infinite", np.inf), ("huge", 1e30)):
        samples = tone(RATE)
        samples[0, 800] = value
        make_audio(tmp_path / f"{name}.wav", "pcm_f32le", RATE, samples)
    # Two samples a second: 4,000 of them would be 32 million at the rate of the model.
    for name, count, rate in (("slow", 1, 2), ("fast", 1, 80_000_000), ("wide", 500, RATE)):
        with wave.open(str(tmp_path / f"{name}.wav"), "wb") as file:
            file.setparams((count, 1, rate, 0, "NONE", ""))
            file.writeframes(bytes(4000))
    reasons = {
        "slow.wav": "1 channels of 2 samples a second",
        "fast.wav": "1 channels of 80000000 samples a second",
        "wide.wav": "500 channels of 16000 samples a second",
        "silent.mp4": "no audio track",
        "zero.mp3": "empty file",
        "none.mp3": "file not found",
        "text.mp3": "no video or audio of a known format",
        "header.wav": "not one sample",
        "nan.wav": "not finite",
        "infinite.wav": "not finite",
        "huge.wav": "not finite",
    }
    for name, reason in reasons.items():
        with pytest.raises(MediaError, match=reason):
            read_audio(tmp_path / name, RATE, 10)


def test_a_playlist_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_audio(tmp_path / "secret.wav", "pcm_s16le", RATE, tone(RATE))
    monkeypatch.chdir(tmp_path)
    lists = {
        "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\nsecret.wav\n#EXT-X-ENDLIST\n",
        "a.ffconcat": "ffconcat version 1.0\nfile secret.wav\n",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        for medium in (tmp_path / name, content.encode()):
            with pytest.raises(MediaError, match="known format"):
                read_audio(medium, RATE, 10)


def test_without_pyav_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r'pip install "mmrec_jax\[media\]"'):
        read_audio(tmp_path / "a.wav", RATE, 10)
