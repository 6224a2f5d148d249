"""A batch's raw inputs in few shapes: texts that share rows, or parts of few lengths, each with room to spare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int

from mmrec_jax.backbones.audio_features import AudioPreprocessor
from mmrec_jax.backbones.family import Tokens
from mmrec_jax.backbones.lengths import padded_length
from mmrec_jax.backbones.media import Preprocessor
from mmrec_jax.backbones.packing import LEAST, WIDTHS, fill_rows, pack_tokens
from mmrec_jax.backbones.text import TextPreprocessor
from mmrec_jax.live.inputs import RawInputs
from mmrec_jax.share import WHOLE, OwnRows, Share

_LENGTHS = (0.5, 0.9, 1.0)
"""Quantiles of the catalogue's lengths that parts are made of: each is computed as one block of rows."""

Sizes = tuple[int, ...]
"""Rows of each part."""


@struct.dataclass
class RawBatch:
    """Inputs of some items, as the step reads them.

    Attributes:
        parts: what the encoder takes, one block of rows a part.
        places: of each item among the vectors of all parts, one part after another; 0 for absent items. Over several
            devices, among those of its own device.
        present: whether an item has an input.
    """

    parts: tuple[Any, ...]
    places: Int[Array, " item"]
    present: Bool[Array, " item"]


class Layout(Protocol):
    """How items become parts."""

    def needed(self, rows: Int[np.ndarray, " item"]) -> Sizes:
        """What `batch` needs for these catalogue rows: to hold several batches, the largest of each entry will do."""

    def sizes(self, needed: Sizes) -> Sizes:
        """Rows of each part that hold what is needed."""

    def batch(self, rows: Int[np.ndarray, " item"], sizes: Sizes, share: Share = WHOLE) -> RawBatch:
        """The inputs of catalogue rows in parts of these sizes, which hold them; absent items have none. Of each part
        the rows are made that are in the share."""


def layout_of(inputs: RawInputs, preprocess: Preprocessor, packs: bool, multiple: int) -> Layout:
    """The layout that suits an encoder and a catalogue.

    Args:
        inputs: of the catalogue.
        preprocess: the backbone's.
        packs: whether the encoder takes rows of several texts.
        multiple: what the rows of a part are padded up to a multiple of.
    """
    lengths = inputs.lengths(np.flatnonzero(inputs.present))
    if isinstance(preprocess, TextPreprocessor) and packs:
        width = next((width for width in WIDTHS if np.quantile(lengths, _LENGTHS[1]) <= width), 0)
        if width:
            longest = min(padded_length(int(lengths.max())), preprocess.max_tokens)
            return Packed(inputs, width, longest, multiple)
    classes: list[int]
    if isinstance(preprocess, TextPreprocessor):
        most = preprocess.max_tokens
        classes = [min(padded_length(int(np.quantile(lengths, share))), most) for share in _LENGTHS]
    elif isinstance(preprocess, AudioPreprocessor) and not preprocess.shape:
        classes = [preprocess.padded(int(np.quantile(lengths, share))) for share in _LENGTHS]
    else:
        classes = [int(lengths.max())]
    return ByLength(inputs, preprocess, tuple(sorted(set(classes))), multiple)


@dataclass(frozen=True)
class ByLength:
    """One part for each of few lengths, the shortest first; an item goes into the longest part that has room."""

    inputs: RawInputs
    preprocess: Preprocessor
    lengths: tuple[int, ...]
    multiple: int

    def needed(self, rows: Int[np.ndarray, " item"]) -> Sizes:
        """How many items there are, how many longer than the first length, than the second, ..."""
        lengths = self.inputs.lengths(rows[self.inputs.present[rows]])
        return tuple(int((lengths > shorter).sum()) for shorter in (-1, *self.lengths[:-1]))

    def sizes(self, needed: Sizes) -> Sizes:
        """Longer parts are filled up with shorter items."""
        rounded = [-(-count // self.multiple) * self.multiple for count in needed]
        return tuple(np.maximum(np.subtract(rounded, [*rounded[1:], 0]), 0).tolist())

    def batch(self, rows: Int[np.ndarray, " item"], sizes: Sizes, share: Share = WHOLE) -> RawBatch:
        """Items by length."""
        present: Any = self.inputs.present[rows]
        items = np.flatnonzero(present)
        items = items[np.argsort(-self.inputs.lengths(rows[items]), kind="stable")]
        places: Any = np.zeros(len(rows), np.int32)
        parts: list[Any] = []
        end = sum(sizes)
        for length, size in reversed(list(zip(self.lengths, sizes, strict=True))):
            inside, items = items[:size], items[size:]
            end -= size
            places[inside] = end + np.arange(len(inside))
            if size:
                parts.append(share.of(size, partial(self._made, rows[inside], length)))
        return RawBatch(tuple(reversed(parts)), places, present)

    def _made(self, items: Int[np.ndarray, " inside"], length: int, part: slice) -> Any:
        """A range of the rows of a part whose first ones are these items."""
        return self._joined([self.inputs[row] for row in items[part]], part.stop - part.start, length)

    def _joined(self, found: Sequence[np.ndarray], size: int, length: int) -> Any:
        if isinstance(self.preprocess, AudioPreprocessor):
            return self.preprocess.joined(found, size, self.preprocess.shape[0] if self.preprocess.shape else length)
        if isinstance(self.preprocess, TextPreprocessor):
            return _block_of_texts(found, size, length)
        block = np.zeros((size, length, *self.inputs.shape), self.inputs.values.dtype)
        for row, pixels in enumerate(found):
            block[row] = pixels
        return block


@dataclass(frozen=True)
class Packed:
    """Rows of `width` tokens that several texts share, and one part for texts that are longer."""

    inputs: RawInputs
    width: int
    longest: int
    multiple: int

    def needed(self, rows: Int[np.ndarray, " item"]) -> Sizes:
        """Rows that the short texts fill, and the number of longer texts."""
        lengths = self.inputs.lengths(rows[self.inputs.present[rows]])
        short = lengths[lengths <= self.width]
        return len(fill_rows(short, self.width)), int((lengths > self.width).sum())

    def sizes(self, needed: Sizes) -> Sizes:
        """Each padded up to the multiple."""
        return tuple(-(-count // self.multiple) * self.multiple for count in needed)

    def batch(self, rows: Int[np.ndarray, " item"], sizes: Sizes, share: Share = WHOLE) -> RawBatch:
        """Short texts in shared rows."""
        present: Any = self.inputs.present[rows]
        items = np.flatnonzero(present)
        lengths = self.inputs.lengths(rows[items])
        short, long = items[lengths <= self.width], items[lengths > self.width]
        places: Any = np.zeros(len(rows), np.int32)
        parts: list[Any] = []
        shared, alone = sizes
        if shared:
            filled = [short[np.asarray(row)] for row in fill_rows(self.inputs.lengths(rows[short]), self.width)]
            slots = self.width // LEAST
            for number, texts in enumerate(filled):
                places[texts] = number * slots + np.arange(len(texts))

            def packed(part: slice) -> Tokens:
                texts = [[self.inputs[rows[item]] for item in row] for row in filled[part]]
                return pack_tokens(texts, part.stop - part.start, self.width)[0]

            parts.append(share.of(shared, packed))
        if alone:
            places[long] = shared * (self.width // LEAST) + np.arange(len(long))

            def single(part: slice) -> Tokens:
                return _block_of_texts(
                    [self.inputs[row] for row in rows[long[part]]], part.stop - part.start, self.longest
                )

            parts.append(share.of(alone, single))
        return RawBatch(tuple(parts), places, present)


@dataclass(frozen=True)
class Grouped:
    """One layout for each of several equal groups of items, whose rows lie one after another in every part.

    A device that has a group's part of everything encodes its items, and no states move between devices.
    """

    own: Layout
    groups: int

    def needed(self, rows: Int[np.ndarray, " item"]) -> Sizes:
        """Of the group that needs most."""
        every = [self.own.needed(part) for part in np.split(rows, self.groups)]
        return tuple(np.max(every, axis=0).tolist())

    def sizes(self, needed: Sizes) -> Sizes:
        """Rows of one group in each part."""
        return self.own.sizes(needed)

    def batch(self, rows: Int[np.ndarray, " item"], sizes: Sizes, share: Share = WHOLE) -> RawBatch:
        """The groups' parts, of those groups that are in the share, and each item's place among its group's vectors."""
        every = np.split(rows, self.groups)
        if share.own is None:
            made = [self.own.batch(part, sizes) for part in every]
            return jax.tree.map(lambda *leaves: np.concatenate(leaves), *made)
        own = share.own
        made = [self.own.batch(every[group], sizes) for group in own]

        def of_groups(*leaves: np.ndarray) -> OwnRows:
            each = len(leaves[0])
            return OwnRows(self.groups * each, {n * each: leaf for n, leaf in zip(own, leaves, strict=True)})

        return jax.tree.map(of_groups, *made)


def _block_of_texts(texts: Sequence[np.ndarray], size: int, length: int) -> Tokens:
    ids: Any = np.zeros((size, length), np.int32)
    mask: Any = np.zeros((size, length), bool)
    for row, tokens in enumerate(texts):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    return Tokens(ids, mask)
