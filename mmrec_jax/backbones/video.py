"""Video files to evenly spaced frames, and a backbone's preprocessing of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from mmrec_jax.backbones.containers import open_container, pyav
from mmrec_jax.backbones.image import ImagePreprocessor
from mmrec_jax.backbones.medium import MediaError, Medium

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

INDEXED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}
"""Containers whose index makes a seek land on the key frame asked for."""

Prepare = Callable[[UInt8[np.ndarray, "height width 3"]], np.ndarray]


@dataclass(frozen=True)
class Bounds:
    """What a video may be at most.

    Attributes:
        pixels: of one frame.
        seconds: of its length.
    """

    pixels: int
    seconds: float


@dataclass(frozen=True)
class VideoPreprocessor:
    """Evenly spaced frames, each prepared like an image.

    Attributes:
        image: what happens to each frame.
        frames: how many are taken.
    """

    image: ImagePreprocessor
    frames: int

    @property
    def fingerprint(self) -> dict:
        """What its result depends on, as JSON values."""
        return {**self.image.fingerprint, "frames": self.frames, "sampling": "segment centres"}

    def __call__(
        self, video: UInt8[np.ndarray, "frame height width 3"]
    ) -> Float[np.ndarray, "frame out_height out_width channel"]:
        """Frames as the encoder takes them, float32."""
        return np.stack([self._prepare(frame) for frame in video])

    def read(self, medium: Medium, bounds: Bounds) -> Float[np.ndarray, "frame height width channel"]:
        """A video file as the encoder takes it; one frame of full size is held at a time.

        Raises:
            MediaError: as `read_video`, or a frame has more than `bounds.pixels` pixels after resizing.
        """
        prepare = partial(self._prepare, max_pixels=bounds.pixels)
        return np.stack(sample_frames(medium, self.frames, bounds, prepare))

    def _prepare(self, frame: UInt8[np.ndarray, "height width 3"], max_pixels: float = math.inf) -> np.ndarray:
        return self.image(Image.fromarray(frame), max_pixels)


def read_video(
    medium: Medium, frames: int, max_pixels: int, max_seconds: float
) -> UInt8[np.ndarray, "frame height width 3"]:
    """Evenly spaced RGB frames of a video file, upright by its rotation metadata.

    Frames are the centres of `frames` equal segments (`segment_centres`). A shorter video repeats frames. Of a file
    with a broken or missing tail the part that decodes counts as the video, if it has at least `frames` frames.

    Args:
        medium: a local file or its content, in any container of `containers.FORMATS` and any codec of PyAV.
        frames: how many are taken.
        max_pixels: bound on the pixels of one frame.
        max_seconds: bound on the video's length.

    Raises:
        MediaError: the medium is absent, empty, no video, beyond a bound, or has too few sound frames.
        ConfigError: PyAV is not installed.
    """
    kept = sample_frames(medium, frames, Bounds(max_pixels, max_seconds), lambda frame: frame)
    if len({frame.shape for frame in kept}) > 1:
        raise MediaError("its frames have several sizes")
    return np.stack(kept)


def sample_frames(medium: Medium, frames: int, bounds: Bounds, prepare: Prepare) -> list[np.ndarray]:
    """Evenly spaced frames as `prepare` makes them; see `read_video`."""
    timeline = _read_timeline(medium, frames, bounds)
    chosen = timeline.times[timeline.centres(frames)]
    kept, _ = _decode(medium, timeline, chosen, bounds, prepare)
    if len(kept) < len(set(chosen.tolist())):
        _, decoded = _decode(medium, timeline.without_seeking(), chosen[:0], bounds, prepare)
        if len(decoded) < frames:
            raise MediaError(f"broken video: only {len(decoded)} frames can be decoded")
        sound = Timeline(decoded, timeline.keys[:0], timeline.counted)
        chosen = decoded[sound.centres(frames)]
        kept, _ = _decode(medium, sound, chosen, bounds, prepare)
    return [kept[time] for time in chosen.tolist()]


def segment_centres(count: int, frames: int) -> Int[np.ndarray, " frame"]:
    """Frame numbers at the centres of equal segments: floor((i + 1/2) count / frames).

    As temporal segment networks (arXiv 1608.00859) and VideoMAE's evaluation sample evenly.
    """
    return (2 * np.arange(frames) + 1) * count // (2 * frames)


@dataclass(frozen=True)
class Timeline:
    """When a video's frames are shown.

    Attributes:
        times: of each frame, ascending, in the stream's time base; 0, 1, 2, ... where the file does not say.
        keys: times of key frames that may be sought; none where seeking is not safe.
        counted: whether `times` are frame numbers.
    """

    times: Int[np.ndarray, " frame"]
    keys: Int[np.ndarray, " key"]
    counted: bool

    def centres(self, frames: int) -> Int[np.ndarray, " frame"]:
        """Numbers of the frames shown at the centres of equal segments of the video's length.

        At a constant frame rate, time stamps rounded to the time base included, these are `segment_centres`.
        """
        count = len(self.times)
        gaps = np.diff(self.times)
        if self.counted or count < 3 or np.ptp(gaps) <= 1:
            return segment_centres(count, frames)
        # The last frame is taken to last as long as frames do in the middle.
        length = self.times[-1] - self.times[0] + np.median(gaps)
        moments = self.times[0] + (np.arange(frames) + 0.5) * length / frames
        return np.searchsorted(self.times, moments, side="right") - 1

    def without_seeking(self) -> Timeline:
        """The same, to be decoded from the beginning to the end."""
        return Timeline(self.times, self.keys[:0], self.counted)


def _video_stream(container: InputContainer, bounds: Bounds) -> VideoStream:
    """The first video track that is no cover picture, with the decoder's own bound on pixels set."""
    from av.stream import Disposition

    tracks = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not tracks:
        raise MediaError("no video track")
    stream = tracks[0]
    if stream.codec_context is None:
        raise MediaError("no decoder for its codec")
    _check_size(stream.codec_context.width, stream.codec_context.height, bounds)
    # Decoders work on whole blocks and add edges before they compare: the bound here is for a track that grows.
    stream.codec_context.options = {"max_pixels": str(2 * bounds.pixels + (1 << 20))}
    return stream


def _check_size(width: int, height: int, bounds: Bounds) -> None:
    if width * height > bounds.pixels:
        raise MediaError(f"too large: {width} x {height} pixels a frame, at most {bounds.pixels} are allowed")


def _read_timeline(medium: Medium, frames: int, bounds: Bounds) -> Timeline:
    """Goes through the packets without decoding them."""
    times: list[int | None] = []
    keys: list[int] = []
    with open_container(medium) as container:
        stream = _video_stream(container, bounds)
        announced, base, rate = stream.frames, stream.time_base, stream.average_rate
        indexed = container.format.name in INDEXED
        first = None
        for packet in _packets(container, stream):
            if not packet.size or packet.is_discard:
                continue
            times.append(packet.pts)
            if packet.pts is None:
                seconds = len(times) / (rate or 25)
            else:
                first = packet.pts if first is None else first
                seconds = (packet.pts - first) * (base or 0)
                if packet.is_keyframe:
                    keys.append(packet.pts)
            if seconds > bounds.seconds:
                raise MediaError(f"too long: more than {bounds.seconds:g} seconds")
    if not times:
        raise MediaError("no frames")
    if len(times) < min(frames, announced):
        raise MediaError(f"broken video: it has {len(times)} of {announced} frames")
    known = [time for time in times if time is not None]
    if len(set(known)) < len(times):
        return Timeline(np.arange(len(times)), np.zeros(0, np.int64), counted=True)
    return Timeline(np.sort(np.asarray(known)), np.sort(np.asarray(keys, np.int64))[: None if indexed else 0], False)


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """From where the container is to its end, or to where it can be read no further."""
    av = pyav()
    try:
        for packet in container.demux(stream):
            # A frame that is not coded has no bytes, but a time; to the decoder it would mean the end.
            if packet.size or packet.dts is None:
                yield packet
    except av.FFmpegError:
        return


def _decode(
    medium: Medium, timeline: Timeline, chosen: Sequence[int] | np.ndarray, bounds: Bounds, prepare: Prepare
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Decodes in order, keeping the chosen frames only; with none chosen, to the end.

    Returns:
        The prepared frame of each chosen time (of the next one that decodes where its own is broken), and the times
        of all frames that were decoded.
    """
    av = pyav()
    waiting = sorted(set(np.asarray(chosen).tolist()), reverse=True)
    everything = not waiting
    kept: dict[int, np.ndarray] = {}
    seen: list[int] = []
    with open_container(medium) as container:
        stream = _video_stream(container, bounds)
        packets = _packets(container, stream)
        landing, sought = None, timeline.times[0]
        while (waiting or everything) and (packet := next(packets, None)) is not None:
            try:
                decoded = packet.decode()
            except av.InvalidDataError:
                continue  # a later packet may be sound
            for frame in decoded:
                if frame.is_corrupt or (frame.pts is None and not timeline.counted):
                    continue
                now = len(seen) if timeline.counted or frame.pts is None else frame.pts
                seen.append(now)
                if landing is not None and now > landing:
                    return _decode(medium, timeline.without_seeking(), chosen, bounds, prepare)
                landing = None
                picture = None
                while waiting and waiting[-1] <= now:
                    picture = prepare(_picture(frame, bounds)) if picture is None else picture
                    kept[waiting.pop()] = picture
            if waiting and decoded and landing is None and seen:
                # Each key frame is sought once: a broken index may lead back to where it is sought from.
                ahead = timeline.keys[(timeline.keys > max(seen[-1], sought)) & (timeline.keys <= waiting[-1])]
                if len(ahead):
                    landing = sought = int(ahead[-1])
                    container.seek(landing, stream=stream)
                    packets = _packets(container, stream)
    return kept, np.asarray(sorted(set(seen)), np.int64)


def _picture(frame: VideoFrame, bounds: Bounds) -> UInt8[np.ndarray, "height width 3"]:
    """RGB pixels, turned upright."""
    _check_size(frame.width, frame.height, bounds)
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
