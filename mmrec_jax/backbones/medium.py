"""A raw medium of an item: a local file, or the bytes of one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

Medium = Path | bytes
"""Where a medium is: the path of a local file, or the file's content."""


class MediaError(Exception):
    """A medium of one item that is missing or broken; extraction goes on without it."""


def check_file(path: Path) -> None:
    """Makes sure that there is a file with content.

    Raises:
        MediaError: the file is absent, is no file, has no content, or its name is too long or in a closed folder.
    """
    try:
        if not path.is_file():
            raise MediaError("file not found")
        if path.stat().st_size == 0:
            raise MediaError("empty file (zero bytes)")
    except OSError as error:
        raise MediaError(f"file cannot be opened: {error.strerror}") from error


@contextmanager
def open_medium(medium: Medium) -> Iterator[BinaryIO]:
    """A medium as a file to read from.

    Raises:
        MediaError: the file is absent, is no file, cannot be opened, or has no content.
    """
    if isinstance(medium, bytes):
        if not medium:
            raise MediaError("empty file (zero bytes)")
        with io.BytesIO(medium) as stream:
            yield stream
        return
    check_file(medium)
    try:
        file = medium.open("rb")
    except OSError as error:
        raise MediaError(f"file cannot be opened: {error.strerror}") from error
    with file:
        yield file
