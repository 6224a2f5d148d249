"""A backbone inside the step, with a method in it: raw inputs of a batch to pooled hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mmrec_jax.adapters.config import SELECTING, MethodConfig
from mmrec_jax.adapters.embedded import EmbeddedMethod, join, split, start_of, trained_names, used_names
from mmrec_jax.adapters.peft_files import import_lora
from mmrec_jax.backbones.backbone import Backbone, load, read_weights
from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig, resolve_layers
from mmrec_jax.backbones.encode import Head, PooledEncoder, check_head, model_for, pooled_states, tokens_of
from mmrec_jax.backbones.image import ImagePreprocessor
from mmrec_jax.backbones.video import VideoPreprocessor
from mmrec_jax.errors import ConfigError
from mmrec_jax.live.inputs import RawInputs, normalised
from mmrec_jax.live.parts import Grouped, Layout, RawBatch, layout_of
from mmrec_jax.shards import Shards
from mmrec_jax.types import Params


@dataclass(frozen=True, eq=False)
class LiveBackbone:
    """A modality whose hidden states are computed as they are needed.

    Attributes:
        name: of the modality.
        method: what is trained inside.
        backbone: with the method at its places; its `params` are those that are not trained.
        head: what is kept of its states.
        trained: '/'-joined names of the parameters that are trained.
        start: what training begins with, on the host: pretrained weights, or modules that were trained before; {} where
            the method begins with fresh ones, or added modules have been trained already.
        encoder: the whole catalogue's states.
    """

    name: str
    method: MethodConfig
    backbone: Backbone
    head: Head
    trained: frozenset[str]
    start: Params = field(repr=False)
    encoder: PooledEncoder = field(repr=False)

    @property
    def frozen(self) -> Params:
        """The backbone's parameters that are not trained."""
        return self.backbone.params

    @property
    def shape(self) -> tuple[int, int]:
        """Width of a state, and the number of layers that are kept."""
        return self.backbone.sizes.width, len(self.head.layers)

    def init(self, rng: Array, start: Params) -> Params:
        """What is trained, as it begins: fresh modules, or `start`."""
        if start:
            return jax.tree.map(jnp.asarray, start)
        example = self.backbone.example

        @jax.jit  # what the modules do not need is not computed
        def added(key: Array) -> Params:
            return split(self.backbone.model.init(key, example)["params"], self.trained)[0]

        return added(rng)

    def states(
        self, trained: Params, frozen: Params, batch: RawBatch, rng: Array | None = None, shards: Shards | None = None
    ) -> tuple[Float[Array, "item width"], ...]:
        """Pooled states of a batch's items, one array a layer; zeros for absent items.

        Args:
            trained: parameters that are trained.
            frozen: the others.
            batch: the items' inputs.
            rng: key of dropout; none where it is off.
            shards: of a step over several devices.
        """
        params = join(trained, frozen)
        keys = [None if rng is None else jax.random.fold_in(rng, n) for n in range(len(batch.parts))]
        vectors = [self._encoded(params, part, key, shards) for part, key in zip(batch.parts, keys, strict=True)]
        width, layers = self.shape
        if not vectors:
            return (jnp.zeros((batch.places.shape[0], width)),) * layers

        def of_items(vectors, places, present):
            return jnp.where(present[:, None, None], jnp.concatenate(vectors)[places], 0.0)

        if shards is not None:
            split = PartitionSpec(shards.batch)
            of_items = shards.map(of_items, (split, split, split), split)
        found = of_items(tuple(vectors), batch.places, batch.present)
        return tuple(found[:, layer] for layer in range(layers))

    @property
    def _model(self) -> nn.Module:
        """The encoder as the step computes it."""
        model = model_for(self.backbone, [self.head])
        config: Any = getattr(model, "config")  # noqa: B009 - every encoder keeps its core's sizes there
        scan = max(self.head.layers) if self.method.scan else 0
        return model.clone(config=replace(config, scan=scan, heads_at_once=self.method.heads))

    def _encoded(
        self, params: Params, part: Any, key: Array | None, shards: Shards | None
    ) -> Float[Array, "vector layer width"]:
        """States of one block of rows, in lots of `chunk` rows of each device where the method has that."""
        rows, chunk = jax.tree.leaves(part)[0].shape[0], self.method.chunk
        devices = 1 if shards is None or rows % shards.batch_parts else shards.batch_parts

        def encoded(params, block, key):
            rngs = None if key is None else {"dropout": key}
            inputs = self._on_device(block)
            (states,) = pooled_states(self._model, (self.head,), tokens_of(self.backbone), params, inputs, rngs)
            return states if shards is None else shards.by_batch(states)

        if not chunk or rows <= chunk * devices:
            return encoded(params, part, key)
        lots = rows // (chunk * devices)

        def of_lot(block, key):
            return encoded(params, block if shards is None else shards.by_batch(block), key)

        # Each lot has rows of every device: of rows one after another, a lot would be one device's alone.
        blocks = jax.tree.map(lambda leaf: _turned(leaf, devices, lots).reshape(lots, -1, *leaf.shape[1:]), part)
        keys = None if key is None else jax.random.split(key, lots)
        states = jax.lax.map(jax.checkpoint(lambda lot: of_lot(*lot)), (blocks, keys))
        states = _turned(states.reshape(-1, *states.shape[2:]), lots, devices).reshape(-1, *states.shape[2:])
        return states if shards is None else shards.by_batch(states)

    def _on_device(self, block: Any) -> Any:
        """Pixels as the encoder takes them."""
        preprocess = self.backbone.preprocess
        if isinstance(preprocess, ImagePreprocessor):
            return _normalised(preprocess, block[:, 0])
        return _normalised(preprocess.image, block) if isinstance(preprocess, VideoPreprocessor) else block

    @property
    def packs(self) -> bool:
        """Whether rows of several texts are made: a prompt would need to be in each text."""
        return bool(getattr(self.backbone.model, "packs", False)) and self.method.kind != "prompt"

    def layout(self, inputs: RawInputs, groups: int = 1) -> Layout:
        """How a batch's items become parts; over several devices, each part of the items is one device's."""
        own = layout_of(inputs, self.backbone.preprocess, self.packs, self.method.chunk or 4)
        return own if groups == 1 else Grouped(own, groups)

    def encode(
        self, trained: Params, frozen: Params, inputs: RawInputs, parts: Sequence[slice]
    ) -> list[list[Float[np.ndarray, "row width"]]]:
        """States of ranges of the catalogue's rows with the given parameters: one array a range, for each layer.

        Zeros for absent items, and for rows past the catalogue's end.
        """
        rows = np.concatenate([part.start + np.flatnonzero(inputs.present[part]) for part in parts])
        (found,) = self.encoder(
            (normalised(self.backbone.preprocess, inputs[int(row)]) for row in rows), join(trained, frozen)
        )
        width, layers = self.shape
        states = [[np.zeros((part.stop - part.start, width), np.float32) for part in parts] for _ in range(layers)]
        for number, part in enumerate(parts):
            own = (rows >= part.start) & (rows < part.stop)
            for layer in range(layers):
                states[layer][number][rows[own] - part.start] = found[own, layer]
        return states


def _turned(leaf: Array, outer: int, inner: int) -> Array:
    """Blocks of an array's first axis, `outer` times `inner` of them, with the inner index before the outer one."""
    return leaf.reshape(outer, inner, -1, *leaf.shape[1:]).swapaxes(0, 1)


def _normalised(preprocess: ImagePreprocessor, pixels: Array) -> Float[Array, "*axes channel"]:
    scaled = pixels.astype(jnp.float32) * preprocess.scale
    return (scaled - jnp.asarray(preprocess.mean, jnp.float32)) / jnp.asarray(preprocess.std, jnp.float32)


def live_backbone(
    name: str,
    modality: ModalityConfig,
    method: MethodConfig,
    extraction: ExtractionConfig,
    begins: bool = True,
) -> LiveBackbone:
    """Loads a modality's backbone with a method inside.

    Args:
        name: of the modality.
        modality: its backbone, layers and pooling.
        method: what is trained inside.
        extraction: rows that are encoded at once where the whole catalogue is.
        begins: whether a training may begin with it, which reads `method.start`.

    Raises:
        BackboneError: the backbone cannot be loaded.
        CheckpointError: what the method is to begin with cannot be read, or does not fit.
        ConfigError: layers, pooling or the method do not fit it.
    """
    where = f"methods.{name}"
    backbone = load(
        modality.backbone,
        kind=modality.kind,
        revision=modality.revision,
        max_tokens=modality.max_tokens if modality.kind == "text" else 0,
        max_seconds=modality.max_seconds,
        frames=modality.frames,
        method=EmbeddedMethod(method),
        dtype=modality.compute_dtype,
        remat=method.remat,
    )
    layers = resolve_layers(modality.layers, backbone.sizes.depth, f"modality {name}")
    head = Head(layers, modality.pooling, modality.frame_pooling)
    check_head(backbone, head)
    trained = _trained(backbone, method, head, where)
    if method.start and begins:
        start = _given(backbone, method, trained, where)
    elif method.kind in SELECTING and modality.compute_dtype != "float32":  # those of the backbone are rounded
        start = read_weights(modality.backbone, trained, kind=modality.kind, revision=modality.revision)
    else:
        start = start_of(backbone.params, trained)
    # Weights that are trained lie in the parameters: here they would take the device's memory a second time.
    backbone = replace(backbone, params=split(backbone.params, trained)[1])
    size = extraction.batch(modality.kind, jax.default_backend())
    encoder = PooledEncoder(backbone, [head], size, packs=method.kind != "prompt")
    return LiveBackbone(name, method, backbone, head, frozenset(trained), start, encoder)


def _given(backbone: Backbone, method: MethodConfig, trained: set[str], where: str) -> Params:
    """LoRA's matrices, on the host, from a folder of peft's, which must be of the method that the config says."""
    found, added = import_lora(method.start, backbone)
    shapes = jax.eval_shape(backbone.model.init, jax.random.key(0), backbone.example)["params"]
    given, places = set(traverse_util.flatten_dict(added, sep="/")), set(traverse_util.flatten_dict(shapes, sep="/"))
    same = (found.rank, found.alpha) == (method.rank, method.alpha)
    # Blocks after the last state that is read are not trained, so a folder that was made of a run has none of them.
    if not same or given - places or trained - given:
        raise ConfigError(
            f"{where}: start={method.start!r} holds LoRA of other settings: set targets={found.targets}, "
            f"rank={found.rank}, alpha={found.alpha}, layers={found.layers}."
        )
    if beyond := given - trained:
        raise ConfigError(f"{where}: start={method.start!r} has {min(beyond)}, which no state that is read depends on.")
    return jax.tree.map(np.array, added)


def _trained(backbone: Backbone, method: MethodConfig, head: Head, where: str) -> set[str]:
    example, model = backbone.example, backbone.model
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    pretrained = set(traverse_util.flatten_dict(backbone.params, sep="/"))
    used = used_names(model, shapes, example, head.layers)
    return trained_names(method, backbone.sizes.depth, used & pretrained, used, where)
