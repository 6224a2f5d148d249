"""A frozen encoder from files in Hugging Face layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Array

from mmrec_jax.backbones.audio_features import AudioPreprocessor, read_audio_preprocessor
from mmrec_jax.backbones.family import Encoder, Family, Sound, Tokens, computed_as
from mmrec_jax.backbones.image import read_image_preprocessor
from mmrec_jax.backbones.media import Preprocessor
from mmrec_jax.backbones.registry import find_family
from mmrec_jax.backbones.sharding import parameter_shardings
from mmrec_jax.backbones.source import locate
from mmrec_jax.backbones.text import TextPreprocessor, read_text_preprocessor
from mmrec_jax.backbones.transformer import BlockMethod, TransformerConfig
from mmrec_jax.backbones.video import VideoPreprocessor
from mmrec_jax.backbones.weights import Tensors, WeightMap, map_weights, sha256_of, weight_files
from mmrec_jax.errors import BackboneError, ConfigError
from mmrec_jax.types import Params

MAX_SECONDS = 30.0  # of a recording, where nothing else is said
FRAMES = 8  # of a video, where an image encoder reads them and nothing else is said


@dataclass(frozen=True)
class Backbone:
    """A frozen encoder with its weights and preprocessing.

    Attributes:
        spec: how it was named: directory, hub id or package:NAME.
        family: its family, with `model_type` and `kind`.
        model: `model.apply({"params": params}, inputs)` gives depth + 1 hidden states [batch token width];
            inputs are `Tokens` for text, float pixels [batch height width channel] for images, [batch frame height
            width channel] for video encoders, and `Sound` for audio.
        params: arrays of the dtype asked for, float32 by default.
        sizes: width, depth and the rest of the transformer core.
        preprocess: texts -> token ids, image -> pixels, frames -> pixels, or samples -> samples or spectrogram.
        weights_sha256: of the weights files.
        class_tokens: how many of the first tokens "cls" pooling averages; 0 where it has none to take.
        registers: how many tokens after those are registers.
        example: the smallest input, from which the parameters' shapes follow.
        weight_map: where each parameter came from.
    """

    spec: str
    family: Family
    model: nn.Module
    params: Params
    sizes: TransformerConfig
    preprocess: Preprocessor
    weights_sha256: str
    class_tokens: int = 1
    registers: int = 0
    example: Tokens | Array | Sound | None = None
    weight_map: WeightMap | None = None

    @property
    def framewise(self) -> bool:
        """Whether an image encoder reads the frames of a video, each like an image."""
        return self.family.kind == "image" and isinstance(self.preprocess, VideoPreprocessor)

    def hidden_states(self, inputs: Tokens | Array | Sound) -> tuple[Array, ...]:
        """Every layer's hidden states [batch token width], 0 being the embedding output."""
        return _apply(self.model, self.params, inputs)


@partial(jax.jit, static_argnums=0)
def _apply(model: nn.Module, params: Params, inputs: Tokens | Array | Sound) -> tuple[Array, ...]:
    states = model.apply({"params": params}, inputs)
    assert isinstance(states, tuple)
    return states


def load(
    spec: str,
    *,
    kind: str = "",
    revision: str = "",
    max_tokens: int = 0,
    max_seconds: float = MAX_SECONDS,
    frames: int = 0,
    method: BlockMethod | None = None,
    dtype: str = "float32",
    remat: bool = False,
    mesh: Mesh | None = None,
) -> Backbone:
    """Loads a backbone.

    Args:
        spec: a local directory, "package:NAME", or a hub id.
        kind: "text", "image", "video" or "audio"; needed where a model encodes several kinds (CLIP), and where an
            image encoder is to read the frames of videos.
        revision: branch, tag or commit of a hub id.
        max_tokens: texts are cut to this many tokens; 0 is as many as the encoder has positions for.
        max_seconds: recordings are cut after this, or after the encoder's window where that is shorter.
        frames: of a video; 0 is as many as a video encoder takes, and 8 for an image encoder.
        method: applied at the named places of each block; the parameters it makes are not part of `params`.
        dtype: "float32" or "bfloat16" of the parameters, hidden states and matrix products.
        remat: whether a backward pass computes each block again, which saves memory and costs a third more time.
        mesh: with an axis "model", over which the parameters are split (`backbones/sharding.py`); they are read one
            after another, so that no host or device holds all of them at once.

    Raises:
        BackboneError: the files are missing, of an unknown kind, or do not fit together.
        ConfigError: `max_tokens` is more than the encoder has positions for, `frames` is not what a video encoder
            takes, or the dtype is unknown.
    """
    directory = locate(spec, revision, kind=kind)
    config = read_config(directory)
    family = find_family(config.get("model_type"), str(directory / "config.json"), kind)
    encoder = computed_as(family.build(config, None), dtype, remat)
    expected = _shapes(encoder)
    shardings = parameter_shardings(expected, encoder.transformer, mesh) if mesh else {}
    places = traverse_util.flatten_dict(shardings, sep="/")
    files = weight_files(directory)
    params = _read(
        files, encoder, expected, lambda path, made: jax.device_put(made.astype(dtype, copy=False), places.get(path))
    )
    preprocess: Preprocessor
    if family.kind == "text":
        preprocess = _text(directory, encoder, max_tokens or encoder.max_tokens)
    elif family.kind == "audio":
        preprocess = _audio(directory, encoder, max_seconds)
    elif "video" in (kind, family.kind):
        preprocess = _video(directory, family, encoder, frames)
    else:
        preprocess = read_image_preprocessor(directory)
    return Backbone(
        spec=spec,
        family=family,
        model=computed_as(family.build(config, method), dtype, remat).module,
        params=params,
        sizes=encoder.transformer,
        preprocess=preprocess,
        weights_sha256=sha256_of(files),
        class_tokens=encoder.class_tokens,
        registers=encoder.registers,
        example=encoder.example,
        weight_map=encoder.weight_map,
    )


def read_weights(spec: str, names: Collection[str], *, kind: str = "", revision: str = "") -> Params:
    """Parameters of a backbone as its files have them: float32, on the host, whatever it is loaded in.

    Args:
        spec: as for `load`, like `kind` and `revision`.
        names: '/'-joined, of the parameters that are wanted.

    Raises:
        BackboneError: the files are missing, of an unknown kind, or do not fit together.
    """
    directory = locate(spec, revision, kind=kind)
    config = read_config(directory)
    encoder = find_family(config.get("model_type"), str(directory / "config.json"), kind).build(config, None)
    wanted = {}

    def keep(path: str, made: np.ndarray) -> None:
        if path in names:
            wanted[path] = made

    _read(weight_files(directory), encoder, _shapes(encoder), keep)
    return traverse_util.unflatten_dict(wanted, sep="/")


def _shapes(encoder: Encoder) -> Params:
    return jax.eval_shape(encoder.module.init, jax.random.key(0), encoder.example)["params"]


def _read(
    files: Sequence[Path], encoder: Encoder, expected: Params, finish: Callable[[str, np.ndarray], Any]
) -> Params:
    where = str(files[0] if len(files) == 1 else files[0].parent)
    return map_weights(Tensors(files), encoder.weight_map, expected, where, finish)


def _text(directory: Path, encoder: Encoder, max_tokens: int) -> TextPreprocessor:
    """The tokenizer; it gives no id or position beyond the encoder's tables, where JAX would read another row."""
    if max_tokens > encoder.max_tokens:
        raise ConfigError(
            f"max_tokens is {max_tokens}, but the backbone at {directory} has positions for {encoder.max_tokens} tokens"
        )
    preprocess = read_text_preprocessor(directory, max_tokens)
    if (known := preprocess.tokenizer.get_vocab_size()) > encoder.vocabulary:
        raise BackboneError(
            f"{directory}: the tokenizer has {known} tokens, but the encoder has embeddings for {encoder.vocabulary}"
        )
    return preprocess


def _audio(directory: Path, encoder: Encoder, max_seconds: float) -> AudioPreprocessor:
    """The feature extractor; its spectrograms have the size that the encoder takes."""
    preprocess = read_audio_preprocessor(directory, max_seconds)
    assert isinstance(encoder.example, Sound)
    takes = encoder.example.values.shape[1:]
    # Encoders of samples take any number of them.
    if preprocess.shape != (takes if len(takes) > 1 else ()):
        raise BackboneError(
            f"{directory}: preprocessor_config.json makes {_size(preprocess.shape)}, but the encoder of config.json "
            f"takes {_size(takes if len(takes) > 1 else ())}"
        )
    return preprocess


def _video(directory: Path, family: Family, encoder: Encoder, frames: int) -> VideoPreprocessor:
    """The frames' preprocessing; a video encoder takes frames of one number and size."""
    image = read_image_preprocessor(directory)
    if family.kind == "image":
        return VideoPreprocessor(image, frames or FRAMES)
    assert isinstance(encoder.example, Array)
    takes, size = encoder.example.shape[1], encoder.example.shape[2:4]
    if frames not in (0, takes):
        raise ConfigError(f"frames is {frames}, but the video encoder at {directory} takes {takes}: leave it at 0")
    if image.output != size:
        made = f"frames of {image.output[0]} x {image.output[1]} pixels" if image.output else "frames of several sizes"
        raise BackboneError(
            f"{directory}: preprocessor_config.json makes {made}, but the encoder of config.json takes "
            f"{size[0]} x {size[1]}"
        )
    return VideoPreprocessor(image, takes)


def _size(shape: tuple[int, ...]) -> str:
    return f"spectrograms of {shape[0]} frames with {shape[1]} bins" if shape else "samples"


def identify(
    spec: str, kind: str, max_tokens: int, revision: str = "", max_seconds: float = MAX_SECONDS, frames: int = 0
) -> dict:
    """What tells one backbone from another, without loading it or using the network.

    Returns:
        "weights_sha256" and "preprocessing", as `load` would have them.

    Raises:
        BackboneError: the files are not on this machine.
    """
    directory = locate(spec, revision, local_only=True)
    preprocess: Preprocessor
    if kind == "text":
        preprocess = read_text_preprocessor(directory, max_tokens)
    elif kind == "audio":
        preprocess = read_audio_preprocessor(directory, max_seconds)
    elif kind == "video":
        config = read_config(directory)
        family = find_family(config.get("model_type"), str(directory / "config.json"), kind)
        preprocess = _video(directory, family, family.build(config, None), frames)
    else:
        preprocess = read_image_preprocessor(directory)
    return {"weights_sha256": sha256_of(weight_files(directory)), "preprocessing": preprocess.fingerprint}


def read_config(directory: Path) -> dict:
    """config.json of a backbone's directory.

    Raises:
        BackboneError: it is no JSON object.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BackboneError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise BackboneError(f"{path} is not a JSON object")
    return config
