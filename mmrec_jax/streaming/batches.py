"""Training batches of one window after another, of sizes that stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrec_jax.data.batches import TrainingStream
from mmrec_jax.data.rows import Rows
from mmrec_jax.training.config import TrainingConfig

_MULTIPLE = 16  # of the sizes of a batch


def training_stream(
    rows: Rows, sizes: Sequence[tuple[int, int]], capacity: int, config: TrainingConfig, fingerprint: str
) -> tuple[TrainingStream, Sequence[tuple[int, int]]]:
    """Batches of a window.

    Args:
        rows: what is trained on.
        sizes: of the axes `distinct` and `step` of batches, as the windows before had them; () chooses two that suit
            this window, and one that holds any batch of any window.
        capacity: items that the table has room for.
        config: of the training.
        fingerprint: of the window.

    Returns:
        The batches, and their sizes for the windows to come.
    """
    settings: dict[str, Any] = {
        "num_items": capacity,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "shard_index": 0,
        "shard_count": 1,
        "size_multiple": _MULTIPLE,
        "fingerprint": fingerprint,
        "epochs": 0,
    }
    length = rows.width - 1
    distinct, steps = min(capacity, config.batch_size * rows.width) + 1, config.batch_size * length
    largest = _rounded(distinct), _rounded(steps)
    if not sizes:
        trial = TrainingStream(rows, **settings)
        sizes = list(dict.fromkeys([*trial.sizes()[:2], largest]))
        trial.close()
    elif largest[0] > max(size for size, _ in sizes):  # the table was made larger
        sizes = [*sizes, largest]
    return TrainingStream(rows, sizes=sizes, **settings), sizes


def _rounded(size: int) -> int:
    return -(-size // _MULTIPLE) * _MULTIPLE
