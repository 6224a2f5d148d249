"""Audio and video files opened by PyAV: local data only, and whatever is wrong with a file is a reason."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrec_jax.backbones.image import MediaError
from mmrec_jax.errors import ConfigError

if TYPE_CHECKING:
    from av.container import InputContainer

# Playlists name other files and addresses, which FFmpeg would open: no protocol is allowed at all, and the
# medium itself is read through a Python file, which is none.
ONLY_THIS_FILE = {"protocol_whitelist": "none"}


def pyav() -> Any:
    """The module `av`, imported where media are decoded and nowhere else.

    Raises:
        ConfigError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ConfigError('decoding audio and video needs PyAV: pip install "mmrec_jax[media]"') from error
    return av


@contextmanager
def open_media(source: Path | bytes) -> Iterator[InputContainer]:
    """An audio or video file, open for reading.

    Args:
        source: a file, or its content.

    Raises:
        ConfigError: PyAV is not installed.
        MediaError: the file is absent, empty or of no known format, or decoding it inside the `with` failed.
    """
    av = pyav()
    if isinstance(source, Path) and not source.is_file():
        raise MediaError("file not found")
    if (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0:
        raise MediaError("empty file (zero bytes)")
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file,
            av.open(file, options=ONLY_THIS_FILE, metadata_errors="replace") as container,
        ):
            yield container
    except (av.FFmpegError, OSError, ValueError, EOFError, MemoryError, OverflowError) as error:
        raise MediaError(f"broken audio or video: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """FFmpeg's sentence without its number and without the name of the Python file."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
