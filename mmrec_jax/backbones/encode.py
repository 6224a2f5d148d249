"""Inputs of many items to pooled hidden states, in few compiled shapes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from mmrec_jax.backbones.audio_features import AudioPreprocessor
from mmrec_jax.backbones.backbone import Backbone
from mmrec_jax.backbones.family import Sound, Tokens
from mmrec_jax.backbones.lengths import padded_length
from mmrec_jax.backbones.packing import WIDTHS, fill_rows, pack_tokens, pool_texts
from mmrec_jax.backbones.pooling import pool, pool_frames
from mmrec_jax.backbones.text import TextPreprocessor
from mmrec_jax.errors import ConfigError
from mmrec_jax.types import Params


@dataclass(frozen=True)
class Head:
    """What is kept of a backbone's hidden states.

    Attributes:
        layers: indices of the hidden states.
        pooling: "cls", "last" or "mean".
        frame_pooling: "mean" or "max", where an image encoder reads the frames of a video.
    """

    layers: tuple[int, ...]
    pooling: str
    frame_pooling: str = "mean"


def check_head(backbone: Backbone, head: Head) -> None:
    """Raises ConfigError where a head takes a class token, or pools frames, and the encoder has none."""
    named = f"{backbone.spec} ({backbone.family.model_type})"
    if not backbone.class_tokens and head.pooling == "cls":
        raise ConfigError(f"pooling 'cls': {named} has no class token; use 'mean'")
    if not backbone.framewise and head.frame_pooling != "mean":
        raise ConfigError(f"frame_pooling: {named} encodes all frames as one; leave it at 'mean'")


@dataclass(frozen=True)
class PooledTokens:
    """What pooling has to know of an encoder's tokens: class tokens, registers, and whether inputs are frames."""

    first: int
    registers: int
    framewise: bool


def tokens_of(backbone: Backbone) -> PooledTokens:
    """What pooling has to know of a backbone's tokens."""
    return PooledTokens(backbone.class_tokens, backbone.registers, backbone.framewise)


def model_for(backbone: Backbone, heads: Sequence[Head]) -> nn.Module:
    """The backbone's module, which computes of its last block no more tokens than the heads read."""
    if backbone.family.kind == "image" and all(head.pooling == "cls" for head in heads):
        return backbone.model.clone(config=replace(backbone.sizes, last_tokens=backbone.class_tokens))
    return backbone.model


class PooledEncoder:
    """A backbone with its pooling as one compiled function per input shape.

    Every batch has the same number of rows (the last is filled up), and texts and recordings have one of few
    lengths, so that a catalogue compiles a handful of programs, and how many items come at once changes no states.
    Encoders that take rows of several texts get them.

    Attributes:
        waited: seconds in which inputs were awaited and nothing was computed, at most.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Sequence[Head],
        batch: int,
        *,
        packs: bool = True,
        devices: Sequence[jax.Device] = (),
    ):
        """Args:
        backbone: the encoder.
        heads: what is kept of its states.
        batch: rows at once, on each device.
        packs: whether rows of several texts may be made for encoders that take them.
        devices: of this process that share the rows of a batch; none for the first one.

        Raises:
            ConfigError: a head does not fit the encoder (`check_head`).
        """
        for head in heads:
            check_head(backbone, head)
        self.backbone = backbone
        self.heads = tuple(heads)
        self.batch = batch * max(len(devices), 1)
        self._packs = packs and getattr(backbone.model, "packs", False)
        self.waited = 0.0
        self._running: deque[tuple[np.ndarray, np.ndarray, Future[list[np.ndarray]]]] = deque()
        # Two batches at a time: where one waits for a core or for the host, the other is computed.
        self._threads = ThreadPoolExecutor(2)
        self._compiled, self._compiling = set[str](), Lock()
        self._devices, self._mesh = tuple(devices), cast(Mesh | None, None)
        self._own: Params | None = None
        tokens = tokens_of(backbone)
        model = model_for(backbone, heads)
        self._apply = jax.jit(partial(pooled_states, model, self.heads, tokens))

    def __call__(
        self, inputs: Iterable[np.ndarray], params: Params | None = None
    ) -> list[Float[np.ndarray, "item layer width"]]:
        """Pooled states of each head, in the order of the inputs.

        Args:
            inputs: token ids [token] of texts, pixels [height width channel] of images, frames [frame height width
                channel] of videos, or sound [time *bin]. Those of equal shapes are taken batch by batch.
            params: of the encoder; None is the backbone's own.
        """
        if params is not None:
            used = self._over(params)
        elif self._own is not None:
            used = self._own
        else:
            used = self._own = self._over(self.backbone.params)
        finished = []
        for rows, places, batch in self._batches(self._timed(inputs)):
            self._running.append((rows, places, self._threads.submit(self._compute, used, batch)))
            # One batch is prepared while two are computed; more at once would only take memory.
            if len(self._running) == 3:
                finished.append(self._take())
        while self._running:
            finished.append(self._take())
        count, width = sum(len(rows) for rows, _ in finished), self.backbone.sizes.width
        results = [np.zeros((count, len(head.layers), width), np.float32) for head in self.heads]
        for rows, states in finished:
            for result, state in zip(results, states, strict=True):
                result[rows] = state
        return results

    def _take(self) -> tuple[np.ndarray, list[np.ndarray]]:
        rows, places, states = self._running.popleft()
        return rows, [state[places] for state in states.result()]

    def _over(self, params: Params) -> Params:
        """The parameters on each of the devices that share the rows of a batch: those of the encoder, or those of this
        process that parameters of a mesh lie on. As they are where there are none. No device waits for another."""
        leaf = next(iter(jax.tree.leaves(params)), None)
        devices = self._devices
        if not devices and isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
            every = leaf.sharding.mesh.devices.flat
            devices = tuple(device for device in every if device.process_index == jax.process_index())
        self._mesh = Mesh(np.asarray(devices), ("rows",), axis_types=(AxisType.Auto,)) if devices else None
        return params if self._mesh is None else jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))

    def _compute(self, params: Params, batch: Tokens | Sound | Array) -> list[np.ndarray]:
        if self._mesh is not None:
            divided = jax.tree.leaves(batch)[0].shape[0] % self._mesh.size == 0
            batch = jax.device_put(batch, NamedSharding(self._mesh, PartitionSpec("rows" if divided else None)))
        shape = str(jax.tree.map(np.shape, batch))
        if shape not in self._compiled:
            with self._compiling:  # by one of the threads, and not by both
                jax.block_until_ready(self._apply(params, batch))
                self._compiled.add(shape)
        return [np.asarray(state) for state in self._apply(params, batch)]

    def _timed(self, inputs: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        stream = iter(inputs)
        while True:
            start = time.perf_counter()
            made = next(stream, None)
            if all(states.done() for *_, states in self._running):
                self.waited += time.perf_counter() - start
            if made is None:
                return
            yield made

    def _batches(self, inputs: Iterable[np.ndarray]) -> Iterator[_Batch]:
        preprocess, size = self.backbone.preprocess, self.batch
        if isinstance(preprocess, TextPreprocessor):
            most = preprocess.max_tokens
            form = _packed if self._packs else _by_length
            yield from form(inputs, size, lambda ids: pad_tokens(ids, size, most))
        elif isinstance(preprocess, AudioPreprocessor) and not preprocess.shape:
            yield from _by_length(inputs, size, lambda sounds: preprocess.batch(sounds, size))
        elif isinstance(preprocess, AudioPreprocessor):
            yield from _by_shape(inputs, size, lambda sounds: preprocess.batch(sounds, size), lambda sound: ())
        else:
            yield from _by_shape(inputs, size, lambda pixels: stack(pixels, size), np.shape)


_Batch = tuple[np.ndarray, np.ndarray, Any]
"""The inputs' numbers, where their vectors are in the encoder's results, and what the encoder takes."""


def _by_length(inputs: Iterable[np.ndarray], size: int, join: Callable) -> Iterator[_Batch]:
    """Sorted by length, a batch wastes little on padding, and only the last one has rows to spare."""
    every = list(inputs)
    order = np.argsort([len(made) for made in every], kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, np.arange(len(rows)), join([every[row] for row in rows])


def _packed(inputs: Iterable[np.ndarray], size: int, join: Callable) -> Iterator[_Batch]:
    """Short texts share rows, of the width that takes the fewest tokens; the others as in `_by_length`."""
    every = list(inputs)
    lengths = np.asarray([len(made) for made in every])
    plans = [(width, np.flatnonzero(lengths <= width)) for width in WIDTHS]
    filled = [(width, short, fill_rows(lengths[short], width)) for width, short in plans]
    width, short, texts = min(filled, key=lambda plan: plan[0] * len(plan[2]) + lengths[lengths > plan[0]].sum())
    rows_at_once = size * WIDTHS[0] // width
    for start in range(0, len(texts), rows_at_once):
        shared = [short[row] for row in texts[start : start + rows_at_once]]
        tokens, places = pack_tokens([[every[text] for text in row] for row in shared], rows_at_once, width)
        yield np.concatenate(shared), places, tokens
    long = np.flatnonzero(lengths > width)
    for rows, places, tokens in _by_length([every[text] for text in long], size, join):
        yield long[rows], places, tokens


def _by_shape(inputs: Iterable[np.ndarray], size: int, join: Callable, shape: Callable) -> Iterator[_Batch]:
    """As soon as there are enough that are joined to one shape; what is left of each shape at the end."""
    groups: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for row, made in enumerate(inputs):
        group = groups.setdefault(shape(made), [])
        group.append((row, made))
        if len(group) == size:
            del groups[shape(made)]
            yield np.asarray([row for row, _ in group]), np.arange(size), join([made for _, made in group])
    for group in groups.values():
        yield np.asarray([row for row, _ in group]), np.arange(len(group)), join([made for _, made in group])


def stack(pixels: Sequence[np.ndarray], batch: int) -> Array:
    """Pictures or frames of one shape as one block of `batch` rows."""
    block = np.zeros((batch, *pixels[0].shape), np.float32)
    block[: len(pixels)] = pixels
    return jnp.asarray(block)


def pad_tokens(ids: Sequence[np.ndarray], batch: int, longest: int) -> Tokens:
    """Texts as one block of `batch` rows and of a length from `padded_length`, at most `longest`."""
    length = min(padded_length(max(len(i) for i in ids)), longest)
    padded: Any = np.zeros((batch, length), np.int32)
    mask: Any = np.zeros((batch, length), bool)
    for row, tokens in enumerate(ids):
        padded[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    return Tokens(padded, mask)


def pooled_states(
    model: nn.Module,
    heads: tuple[Head, ...],
    tokens: PooledTokens,
    params: Params,
    inputs: Any,
    rngs: dict[str, Array] | None = None,
) -> tuple[Float[Array, "batch layer width"], ...]:
    """Pooled states of each head; blocks above the last layer asked for are not computed.

    Rows of several texts give as many vectors as there is room for, row by row (`packing.pool_texts`).

    Args:
        model: of the backbone.
        heads: what is kept.
        tokens: of the encoder.
        params: of the model.
        inputs: `Tokens`, `Sound`, pixels or frames, as it takes them.
        rngs: keys of methods inside it, such as "dropout".
    """
    videos = inputs.shape[:2] if tokens.framewise else ()
    if videos:
        inputs = inputs.reshape(-1, *inputs.shape[2:])
    states: Any = model.apply({"params": params}, inputs, rngs=rngs)
    mask: Any = inputs.mask if isinstance(inputs, Tokens) else None
    if isinstance(inputs, Sound):
        mask = model.apply({"params": params}, inputs, method="token_mask")

    def pooled(layer: int, head: Head) -> Float[Array, "batch width"]:
        if isinstance(inputs, Tokens) and inputs.texts is not None:
            return pool_texts(states[layer], inputs.texts, head.pooling)
        vectors = pool(states[layer], mask, head.pooling, tokens.first, tokens.registers)
        return pool_frames(vectors.reshape(*videos, -1), head.frame_pooling) if videos else vectors

    return tuple(jnp.stack([pooled(layer, head) for layer in head.layers], axis=1) for head in heads)
