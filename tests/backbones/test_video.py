"""Video files to evenly spaced frames: any codec and frame rate, rotation, bounds, and files that are broken."""

from __future__ import annotations

import struct
import sys
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from mmrec_jax.backbones.image import ImagePreprocessor
from mmrec_jax.backbones.medium import MediaError
from mmrec_jax.backbones.video import (
    Bounds,
    Timeline,
    VideoPreprocessor,
    _read_timeline,
    read_video,
    sample_frames,
)
from mmrec_jax.errors import ConfigError

av = pytest.importorskip("av", reason="video needs PyAV (the `media` extra)")

PIXELS, SECONDS = 1_000_000, 60.0
STEP = 6  # brightness between frames: more than a codec's error


def brightness(number: int) -> int:
    return 10 + STEP * number


def make_video(
    path: Path, count: int = 40, codec: str = "mpeg4", rate: int = 10, times: list[int] | None = None, gop: int = 6
) -> Path:
    """A video whose frame k is of brightness 10 + 6 k, its left quarter black; `times` are in 1/1000 s."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.bit_rate = 2_000_000
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            picture = np.full((48, 64, 3), brightness(number), np.uint8)
            picture[:, :16] = 0
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(video: np.ndarray) -> list[int]:
    """Which frames of `make_video` these are."""
    return np.round((video[:, 20:28, 40:60].mean((1, 2, 3)) - 10) / STEP).astype(int).tolist()


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "mpeg4"),
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.webm", "libvpx"),
        ("a.avi", "mpeg4"),
        ("a.ts", "mpeg2video"),
        ("a.flv", "flv"),
    ],
)
def test_frames_lie_at_the_centres_of_equal_segments(name: str, codec: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / name, codec=codec, rate=25)
    expected = [int((i + 0.5) * 40 / 7) for i in range(7)]
    video = read_video(path, 7, PIXELS, SECONDS)
    assert video.shape == (7, 48, 64, 3)
    assert video.dtype == np.uint8
    assert numbers(video) == expected
    assert numbers(read_video(path.read_bytes(), 7, PIXELS, SECONDS)) == expected


def test_a_short_video_repeats_frames(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", count=3)
    assert numbers(read_video(path, 7, PIXELS, SECONDS)) == [0, 0, 1, 1, 1, 2, 2]
    assert numbers(read_video(make_video(tmp_path / "b.mp4", count=1), 2, PIXELS, SECONDS)) == [0, 0]


def test_frames_of_a_varying_rate_are_even_in_time(tmp_path: Path) -> None:
    # 20 frames in the first second, then one a second.
    times = [*range(0, 1000, 50), *range(1000, 11_000, 1000)]
    path = make_video(tmp_path / "a.mkv", count=30, codec="libvpx", times=times)
    moments = (np.arange(5) + 0.5) * (times[-1] + np.median(np.diff(times))) / 5
    expected = [int(np.searchsorted(times, moment, side="right")) - 1 for moment in moments]
    assert numbers(read_video(path, 5, PIXELS, SECONDS)) == expected
    assert expected[0] == 20


def test_seeking_gives_the_frames_that_decoding_everything_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mp4", codec="libx264", gop=4)
    sought = read_video(path, 5, PIXELS, SECONDS)
    monkeypatch.setattr("mmrec_jax.backbones.video.INDEXED", set())
    np.testing.assert_array_equal(sought, read_video(path, 5, PIXELS, SECONDS))


def test_an_index_that_names_wrong_key_frames_changes_no_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "a.mp4", gop=12)
    true = _read_timeline(path, 5, Bounds(PIXELS, SECONDS))
    wrong = Timeline(true.times, true.times, counted=False)
    monkeypatch.setattr("mmrec_jax.backbones.video._read_timeline", lambda *_: wrong)
    assert numbers(read_video(path, 5, PIXELS, SECONDS)) == [4, 12, 20, 28, 36]


def test_only_chosen_frames_are_turned_into_pixels(tmp_path: Path) -> None:
    made = []
    sample_frames(make_video(tmp_path / "a.mp4"), 4, Bounds(PIXELS, SECONDS), lambda f: made.append(f) or f)
    assert numbers(np.stack(made)) == [5, 15, 25, 35]


@pytest.mark.parametrize(("degrees", "black"), [(90, "top"), (180, "right"), (270, "bottom")])
def test_rotation_metadata_turns_frames_upright(degrees: int, black: str, tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    # The track header's matrix, which turns clockwise (ISO 14496-12, 8.3.2).
    sine, cosine = {90: (1, 0), 180: (0, -1), 270: (-1, 0)}[degrees]
    unit = 1 << 16
    start = content.index(b"tkhd") - 4 + 48
    content[start : start + 36] = struct.pack(
        ">9i", cosine * unit, sine * unit, 0, -sine * unit, cosine * unit, 0, 0, 0, 1 << 30
    )
    frame = read_video(bytes(content), 2, PIXELS, SECONDS)[1].astype(int)
    assert frame.shape == ((64, 48, 3) if degrees != 180 else (48, 64, 3))
    dark = {"top": frame[:8], "right": frame[:, -8:], "bottom": frame[-8:]}[black]
    assert dark.mean() < 20 < 100 < frame.mean()


def test_the_sound_part_of_a_video_with_a_corrupt_tail_is_used(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "a.mkv", codec="libx264").read_bytes()
    cut = whole[: int(len(whole) * 0.6)]
    video = read_video(cut, 4, PIXELS, SECONDS)
    assert max(numbers(video)) < 30
    assert len(set(numbers(video))) == 4
    # Garbage instead of the last frames: their packets are there, but do not decode.
    content = make_video(tmp_path / "a.avi").read_bytes()
    index = content.rindex(b"idx1")
    broken = content[: index - 2000] + bytes(2000) + content[index:]
    found = numbers(read_video(broken, 4, PIXELS, SECONDS))
    assert len(set(found)) == 4
    assert found != [5, 15, 25, 35]
    with pytest.raises(MediaError, match="broken video: it has"):
        read_video(broken, 39, PIXELS, SECONDS)


def test_what_is_no_video_is_a_reason(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    (tmp_path / "text.mp4").write_text("<html>not found</html>" * 20)
    (tmp_path / "zero.mp4").touch()
    whole = make_video(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # the index lies at the end
    reasons = {
        "sound.wav": "no video track",
        "text.mp4": "broken, or no video or audio",
        "zero.mp4": "empty file",
        "none.mp4": "file not found",
        "cut.mp4": "broken, or no video or audio",
    }
    for name, reason in reasons.items():
        with pytest.raises(MediaError, match=reason):
            read_video(tmp_path / name, 4, PIXELS, SECONDS)
    with pytest.raises(MediaError, match="zero bytes"):
        read_video(b"", 4, PIXELS, SECONDS)


@pytest.mark.parametrize(
    "script",
    [
        "ffconcat version 1.0\nfile {path}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{path}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    ],
)
def test_playlists_are_not_followed(script: str, tmp_path: Path) -> None:
    target = make_video(tmp_path / "a.ts", codec="mpeg2video", rate=25)
    for name in ("list.m3u8", "list.ffconcat", "list.mp4"):
        (tmp_path / name).write_text(script.format(path=target))
        with pytest.raises(MediaError, match="broken, or no video"):
            read_video(tmp_path / name, 4, PIXELS, SECONDS)


def test_bounds_on_pixels_and_length_are_reasons(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")  # 40 frames at 10 a second
    with pytest.raises(MediaError, match="too large: 64 x 48 pixels a frame, at most 3000"):
        read_video(path, 4, 3000, SECONDS)
    with pytest.raises(MediaError, match="too long: more than 3 seconds"):
        read_video(path, 4, PIXELS, 3)
    # An AVI has no time stamps: frames are counted.
    with pytest.raises(MediaError, match="too long"):
        read_video(make_video(tmp_path / "a.avi"), 4, PIXELS, 3)
    assert len(read_video(path, 4, 64 * 48, 4)) == 4


def test_frames_are_prepared_like_images_while_they_are_read(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    image = ImagePreprocessor(24, (), 2, (20, 22), 1 / 255, (0.5,) * 3, (0.25,) * 3)
    preprocess = VideoPreprocessor(image, 4)
    pixels = preprocess.read(path, Bounds(PIXELS, SECONDS))
    assert pixels.shape == (4, 20, 22, 3)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, preprocess(read_video(path, 4, PIXELS, SECONDS)))
    assert preprocess.fingerprint == {**image.fingerprint, "frames": 4, "sampling": "segment centres"}


def test_thin_frames_are_not_blown_up_beyond_the_pixel_bound(tmp_path: Path) -> None:
    preprocess = VideoPreprocessor(ImagePreprocessor(96, (), 2, (20, 22), 1.0, (0.0,) * 3, (1.0,) * 3), 4)
    with pytest.raises(MediaError, match="64 x 48 pixels, 128 x 96 after resizing, at most 10000"):
        preprocess.read(make_video(tmp_path / "a.mp4"), Bounds(10_000, SECONDS))


def test_without_pyav_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r'pip install "mmrec_jax\[media\]"'):
        read_video(path, 4, PIXELS, SECONDS)
