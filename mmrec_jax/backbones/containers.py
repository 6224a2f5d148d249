"""Video and audio files opened with PyAV, of local content only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mmrec_jax.backbones.medium import MediaError, Medium, open_medium
from mmrec_jax.errors import ConfigError

if TYPE_CHECKING:
    from av.container import InputContainer

FORMATS = (
    # Containers that hold their media themselves. Playlists and scripts (hls, dash, concat, lavfi, sdp, ...) name
    # other places to read from and stay out.
    *("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi", "flv", "asf", "ogg", "nut", "ivf", "dv"),
    *("mpeg", "mpegts", "mpegvideo", "h261", "h263", "h264", "hevc", "obu", "m4v", "mjpeg", "mxf", "rm", "wtv"),
    *("yuv4mpegpipe", "gif", "apng"),
    *("wav", "w64", "mp3", "flac", "aac", "ac3", "eac3", "aiff", "au", "caf", "amr", "ape", "wv", "tta", "dts"),
)


def pyav() -> Any:
    """The module `av`, imported where media are decoded and nowhere else.

    Raises:
        ConfigError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ConfigError('video and audio need PyAV: pip install "mmrec_jax[media]"') from error
    return av


@contextmanager
def open_container(medium: Medium) -> Iterator[InputContainer]:
    """A video or audio file, opened for demuxing and decoding.

    The library gets an open file, no name, and may open nothing else: no URL is fetched and no playlist followed.

    Raises:
        MediaError: the medium is absent, empty, or of no format in `FORMATS`; or reading from the container inside
            the `with` block failed.
        ConfigError: PyAV is not installed.
    """
    av = pyav()
    # As options of the container: with options for its streams too, PyAV before 18 crashes at an MPEG program stream.
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
    try:
        with (
            open_medium(medium) as file,
            av.open(file, container_options=options, metadata_errors="replace") as container,
        ):
            yield container
    # Broken files make PyAV raise Python's own errors too, such as IndexError where tracks come and go.
    except (av.FFmpegError, OSError, EOFError, MemoryError, OverflowError, LookupError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(f"broken, or no video or audio of a known format: {reason}") from error
