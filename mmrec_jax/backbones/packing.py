"""Several short texts in one row: no computing on padding, and one compiled shape for many lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mmrec_jax.backbones.family import Tokens

WIDTHS = (64, 128)  # tokens of a row
LEAST = 8  # tokens that a text takes at least, on average, where a row is full of texts


def fill_rows(lengths: Sequence[int] | Int[np.ndarray, " text"], width: int) -> list[list[int]]:
    """Which texts share a row of `width` tokens: the longest first, each where the least room is left for it.

    Args:
        lengths: of the texts, at most `width` each.
        width: tokens of a row; it takes at most width / 8 texts.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(width + 1)]  # rows by the room that they have
    for text in np.argsort(-np.asarray(lengths), kind="stable"):
        length = int(lengths[text])
        room = next((room for room in range(length, width + 1) if with_room[room]), 0)
        if room:
            row = with_room[room].pop()
        else:
            row, room = len(rows), width
            rows.append([])
        rows[row].append(int(text))
        if len(rows[row]) < width // LEAST:
            with_room[room - length].append(row)
    return rows


def pack_tokens(texts: Sequence[Sequence[np.ndarray]], batch: int, width: int) -> tuple[Tokens, np.ndarray]:
    """Rows of texts as one block, and each text's place among the vectors that `pool_texts` gives, row by row.

    Args:
        texts: token ids of the texts of each row.
        batch: rows of the block.
        width: tokens of a row.
    """
    ids: Any = np.zeros((batch, width), np.int32)  # of the host: whoever computes with them puts them on a device
    which: Any = np.zeros((batch, width), np.int32)
    places = []
    for row, shared in enumerate(texts):
        start = 0
        for number, tokens in enumerate(shared):
            ids[row, start : start + len(tokens)] = tokens
            which[row, start : start + len(tokens)] = number + 1
            start += len(tokens)
            places.append(row * (width // LEAST) + number)
    return Tokens(ids, which > 0, which), np.asarray(places, np.int64)


def pool_texts(
    state: Float[Array, "batch token width"], texts: Int[Array, "batch token"], pooling: str
) -> Float[Array, "vector width"]:
    """Pools each text of each row in float32; the vectors of texts that a row does not have are zeros.

    Args:
        state: tokens of one layer.
        texts: as in `Tokens`.
        pooling: as in `pool`.
    """
    slots = texts.shape[1] // LEAST
    own = texts[:, None, :] == jnp.arange(1, slots + 1)[:, None]
    if pooling == "cls":
        own &= jnp.cumsum(own, axis=2) == 1
    elif pooling == "last":
        own &= jnp.cumsum(own, axis=2) == own.sum(axis=2, keepdims=True)
    weights = own.astype(jnp.float32)
    sums = jnp.einsum("bst,btw->bsw", weights, state.astype(jnp.float32))
    return (sums / jnp.maximum(weights.sum(axis=2)[..., None], 1)).reshape(-1, state.shape[-1])
