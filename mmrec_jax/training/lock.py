"""One training at a time in a directory."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from mmrec_jax.errors import TrainingError


@contextlib.contextmanager
def only_training_in(directory: Path, what: str = "training") -> Iterator[None]:
    """Holds a lock on a directory, which the operating system takes back however the process ends.

    Two trainings in one workdir would each remove what the other is saving.

    Args:
        directory: of which one process at a time may have the lock.
        what: is under way there, for the message.

    Raises:
        TrainingError: another process has the lock.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(
                f"Another {what} is under way in {directory}: wait for it, end it, or choose another --workdir."
            ) from error
        except OSError:
            pass  # a file system without locks: nothing to hold, and nothing to refuse
        yield
