"""Audio of any container and codec to mono samples at a backbone's rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mmrec_jax.backbones.containers import open_container, pyav
from mmrec_jax.backbones.medium import MediaError, Medium

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

RATES, MOST_CHANNELS = range(1000, 1_000_001), 64  # at others a frame, or the resampler's filter, fills the memory
LOUDEST = 1e6  # full scale is 1; samples beyond this are garbage, and would overflow in float32


def read_audio(medium: Medium, rate: int, max_seconds: float) -> Float[np.ndarray, " sample"]:
    """The first audio track of an audio or video file, as the mean of its channels.

    No more is decoded than is asked for, so that long files take neither time nor memory. Packets that cannot
    be decoded are left out, and what comes before a corrupt tail is used.

    Args:
        medium: a local file or its content, in any container of `containers.FORMATS` and any codec of PyAV.
        rate: samples a second; FFmpeg resamples to it.
        max_seconds: longer recordings are cut after this.

    Returns:
        float32, full scale being -1 to 1.

    Raises:
        ConfigError: PyAV is not installed.
        MediaError: there is no such file, no audio track, not one sample, or nothing that can be decoded.
    """
    wanted = max(1, round(rate * max_seconds))
    parts: list[np.ndarray] = []
    with open_container(medium) as container:
        if not container.streams.audio:
            raise MediaError("no audio track")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise MediaError("no decoder for its codec")
        missing = wanted
        for part in _mono(_frames(container, stream), rate):
            parts.append(part[:missing])
            missing -= len(parts[-1])
            if not missing:
                break
    samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    if not len(samples):
        raise MediaError("no sound: not one sample could be decoded")
    if not np.abs(samples).max() < LOUDEST:  # also where one is not a number
        raise MediaError("broken audio: samples are not finite")
    return samples


def _frames(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """Decoded frames up to the end or to where the file can be read no further."""
    av = pyav()

    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.InvalidDataError:
                continue
    except (av.FFmpegError, EOFError):
        return


def _mono(frames: Iterator[AudioFrame], rate: int) -> Iterator[np.ndarray]:
    """Frames resampled to `rate`; a stream that changes its own rate or channels gets another resampler."""
    av = pyav()

    resampler, form = None, None
    for frame in frames:
        # The resampler takes gaps in the time stamps as they are: samples follow one another.
        frame.pts = None
        here = (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or here != form:
            if resampler is not None:
                yield from map(_mean, resampler.resample(None))
            if frame.sample_rate not in RATES or frame.layout.nb_channels > MOST_CHANNELS:
                raise MediaError(
                    f"broken audio: {frame.layout.nb_channels} channels of {frame.sample_rate} samples a second"
                )
            resampler, form = av.AudioResampler(format="flt", rate=rate), here
        yield from map(_mean, resampler.resample(frame))
    if resampler is not None:
        yield from map(_mean, resampler.resample(None))


def _mean(frame: AudioFrame) -> Float[np.ndarray, " sample"]:
    """Channels to one; they are interleaved, since PyAV 18 crashes at more than 8 channels that are not."""
    return frame.to_ndarray().reshape(frame.samples, -1).mean(axis=1, dtype=np.float32)
