"""Inputs of many items to pooled hidden states, in few compiled shapes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmrec_jax.backbones.backbone import Backbone
from mmrec_jax.backbones.family import Tokens
from mmrec_jax.backbones.pooling import pool
from mmrec_jax.backbones.text import TextPreprocessor


@dataclass(frozen=True)
class Head:
    """What is kept of a backbone's hidden states.

    Attributes:
        layers: indices of the hidden states.
        pooling: "cls" or "mean".
    """

    layers: tuple[int, ...]
    pooling: str


class PooledEncoder:
    """A backbone with its pooling as one compiled function per input shape.

    Every batch has the same number of rows (the last is filled up), and texts have one of few lengths, so
    that a catalogue compiles a handful of programs, and how many items come at once changes no states.
    """

    def __init__(self, backbone: Backbone, heads: Sequence[Head], batch: int):
        self.backbone = backbone
        self.heads = tuple(heads)
        self.batch = batch
        preprocess = backbone.preprocess
        self._longest = preprocess.max_tokens if isinstance(preprocess, TextPreprocessor) else 0
        self._apply = jax.jit(partial(_pooled_states, backbone.model, self.heads))

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[Float[np.ndarray, "item layer width"]]:
        """Pooled states of each head, in the order of the inputs.

        Args:
            inputs: token ids [token] of texts, or pixels [height width channel] of images.
        """
        width = self.backbone.sizes.width
        results = [np.zeros((len(inputs), len(head.layers), width), np.float32) for head in self.heads]
        running: deque[tuple[np.ndarray, tuple[Array, ...]]] = deque()
        for rows, batch in self._batches(inputs):
            running.append((rows, self._apply(self.backbone.params, batch)))
            # One batch is prepared while another is computed; more at once would only take memory.
            if len(running) == 2:
                _take(running, results)
        while running:
            _take(running, results)
        return results

    def _batches(self, inputs: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, Tokens | Array]]:
        if self.backbone.family.kind == "text":
            # Sorted by length, a batch wastes little on padding, and only the last one has rows to spare.
            order = np.argsort([len(ids) for ids in inputs], kind="stable")
            for start in range(0, len(order), self.batch):
                rows = order[start : start + self.batch]
                yield rows, pad_tokens([inputs[row] for row in rows], self.batch, self._longest)
            return
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for row, pixels in enumerate(inputs):
            by_shape.setdefault(pixels.shape, []).append(row)
        for shape, members in by_shape.items():
            for start in range(0, len(members), self.batch):
                rows = np.asarray(members[start : start + self.batch])
                block = np.zeros((self.batch, *shape), np.float32)
                block[: len(rows)] = [inputs[row] for row in rows]
                yield rows, jnp.asarray(block)


def _take(running: deque[tuple[np.ndarray, tuple[Array, ...]]], results: list[np.ndarray]) -> None:
    """Puts the oldest running batch's states where they belong."""
    rows, states = running.popleft()
    for result, state in zip(results, states, strict=True):
        result[rows] = np.asarray(state)[: len(rows)]


def pad_tokens(ids: Sequence[np.ndarray], batch: int, longest: int) -> Tokens:
    """Texts as one block of `batch` rows and of a length from `padded_length`, at most `longest`."""
    length = min(padded_length(max(len(i) for i in ids)), longest)
    padded, mask = np.zeros((batch, length), np.int32), np.zeros((batch, length), bool)
    for row, tokens in enumerate(ids):
        padded[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    return Tokens(jnp.asarray(padded), jnp.asarray(mask))


def padded_length(length: int) -> int:
    """The shortest allowed length that holds `length` tokens: 8, 16, ..., 64, 80, 96, 112, 128, 160, ..."""
    step = 8
    while step * 8 < length:
        step *= 2
    return -(-length // step) * step


def _pooled_states(model, heads: tuple[Head, ...], params, inputs) -> tuple[Array, ...]:
    """Per head [batch layer width]; blocks above the last layer asked for are not computed."""
    states = model.apply({"params": params}, inputs)
    mask = inputs.mask if isinstance(inputs, Tokens) else None
    return tuple(jnp.stack([pool(states[i], mask, head.pooling) for i in head.layers], axis=1) for head in heads)
