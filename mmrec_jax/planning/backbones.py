"""Backbones as shapes: what a plan knows of encoders whose weights are not here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mmrec_jax.adapters.config import MethodConfig
from mmrec_jax.adapters.embedded import EmbeddedMethod, split, trained_names, used_names
from mmrec_jax.backbones.backbone import FRAMES, Backbone, read_config
from mmrec_jax.backbones.config import ExtractionConfig, ModalityConfig, resolve_layers
from mmrec_jax.backbones.encode import Head, PooledEncoder, check_head
from mmrec_jax.backbones.family import Sound, Tokens, computed_as, pair
from mmrec_jax.backbones.image import ImagePreprocessor, read_image_preprocessor
from mmrec_jax.backbones.lengths import padded_length
from mmrec_jax.backbones.packing import LEAST, WIDTHS
from mmrec_jax.backbones.registry import find_family, preset
from mmrec_jax.backbones.source import locate
from mmrec_jax.backbones.video import VideoPreprocessor
from mmrec_jax.errors import BackboneError, PlanningError
from mmrec_jax.live import LiveBackbone

RATE = 16_000
"""Samples a second of encoders of samples: what all of their published checkpoints take."""


def published(modality: ModalityConfig) -> tuple[dict, Path | None]:
    """The config.json of a modality's backbone and the folder of its files, where they are here; else that of the
    published size of that name, and no folder.

    Raises:
        PlanningError: there are no files and no published size.
    """
    try:
        directory = locate(modality.backbone, modality.revision, local_only=True)
        return read_config(directory), directory
    except BackboneError as absent:
        name = modality.backbone.split("/")[-1].removeprefix("package:")
        for known in (name, f"{name}-{modality.kind}"):
            try:
                return preset(known), None
            except BackboneError as unknown:
                listed = unknown
        raise PlanningError(f"{modality.backbone} is not here ({absent}), and {listed}") from absent


def backbone_shapes(modality: ModalityConfig, method: MethodConfig | None = None) -> Backbone:
    """A backbone whose parameters are shapes, in the type that it computes in.

    Its preprocessing is only good for shapes: pixels of the encoder's size, no tokenizer.

    Raises:
        PlanningError: nothing is known of it.
        BackboneError, ConfigError: as `backbones.load`.
    """
    config, directory = published(modality)
    where = f"the backbone {modality.backbone}"
    family = find_family(config.get("model_type"), where, modality.kind)
    remat = method.remat if method else False
    encoder = computed_as(family.build(config, None), modality.compute_dtype, remat)
    made = jax.eval_shape(encoder.module.init, jax.random.key(0), encoder.example)["params"]
    dtype = jnp.dtype(modality.compute_dtype)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), made)
    built = family.build(config, EmbeddedMethod(method) if method else None)
    return Backbone(
        spec=modality.backbone,
        family=family,
        model=computed_as(built, modality.compute_dtype, remat).module,
        params=params,
        sizes=encoder.transformer,
        preprocess=_preprocess(modality, encoder.example, config, directory),
        weights_sha256="",
        class_tokens=encoder.class_tokens,
        registers=encoder.registers,
        example=encoder.example,
    )


def _preprocess(modality: ModalityConfig, example: Any, config: dict, directory: Path | None) -> Any:
    """Pixels of the size that its files say, or its config.json; nothing for text and sound."""
    if modality.kind not in ("image", "video"):
        return None
    own = read_image_preprocessor(directory).output if directory is not None else ()
    size = own or pair(config.get("vision_config", config), "image_size", 224)
    image = ImagePreprocessor(0, size, 2, (), 1 / 255, (0.5,) * 3, (0.5,) * 3)
    if modality.kind == "image":
        return image
    frames = example.shape[1] if example.ndim == 5 else modality.frames or FRAMES
    return VideoPreprocessor(image, frames)


def head_of(modality: ModalityConfig, backbone: Backbone) -> Head:
    """What is kept of a backbone's states."""
    layers = resolve_layers(modality.layers, backbone.sizes.depth, f"modality {modality.backbone}")
    head = Head(layers, modality.pooling, modality.frame_pooling)
    check_head(backbone, head)
    return head


def live_shapes(
    name: str, modality: ModalityConfig, method: MethodConfig, extraction: ExtractionConfig
) -> LiveBackbone:
    """A live backbone whose parameters are shapes; see `backbone_shapes` for errors."""
    backbone = backbone_shapes(modality, method)
    head = head_of(modality, backbone)
    shapes = jax.eval_shape(backbone.model.init, jax.random.key(0), backbone.example)["params"]
    used = used_names(backbone.model, shapes, backbone.example, head.layers)
    own = used & set(traverse_util.flatten_dict(backbone.params, sep="/"))
    trained = trained_names(method, backbone.sizes.depth, own, used, f"methods.{name}")
    own_trained, kept = split(backbone.params, trained)
    start = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), own_trained)
    backbone = replace(backbone, params=kept)
    encoder = PooledEncoder(backbone, [head], extraction.batch(modality.kind, "tpu"), packs=method.kind != "prompt")
    return LiveBackbone(name, method, backbone, head, frozenset(trained), start, encoder)


def input_shapes(
    modality: ModalityConfig, backbone: Backbone, rows: int, *, tokens: int = 0, packs: bool = False, raw: bool = False
) -> tuple[Any, int]:
    """What an encoder takes for so many items, all of full length or texts of `tokens` on average.

    Args:
        modality: whose items they are.
        backbone: its encoder.
        rows: items.
        tokens: of a text, on average; 0 is the most that it can have.
        packs: whether texts share rows.
        raw: pixels as bytes, which is how the step gets them.

    Returns:
        Arrays as shapes, and how many vectors the encoder gives for them.
    """
    if modality.kind == "text":
        length = min(padded_length(modality.max_tokens), modality.max_tokens)
        width = next((width for width in WIDTHS if modality.max_tokens <= width), 0)
        if packs and width:
            filled = -(-rows * (tokens or modality.max_tokens) // width)
            ids = _array((filled, width), jnp.int32)
            return Tokens(ids, _array((filled, width), jnp.bool_), ids), filled * (width // LEAST)
        return Tokens(_array((rows, length), jnp.int32), _array((rows, length), jnp.bool_)), rows
    if modality.kind == "audio":
        example: Any = backbone.example
        sizes = example.values.shape[1:]
        if len(sizes) == 1:
            sizes = (int(modality.max_seconds * RATE),)
        return Sound(_array((rows, *sizes), jnp.float32), _array((rows,), jnp.int32)), rows
    preprocess: Any = backbone.preprocess
    image = preprocess.image if isinstance(preprocess, VideoPreprocessor) else preprocess
    frames: tuple[int, ...] = (preprocess.frames,) if isinstance(preprocess, VideoPreprocessor) else ()
    if raw:
        return jax.ShapeDtypeStruct((rows, *(frames or (1,)), *image.size, 3), np.uint8), rows
    return jax.ShapeDtypeStruct((rows, *frames, *image.size, 3), jnp.float32), rows


def _array(shape: tuple[int, ...], dtype: Any) -> Any:
    """An array as a shape, where a type asks for an array."""
    return jax.ShapeDtypeStruct(shape, dtype)
