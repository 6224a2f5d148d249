"""What a user says about a modality, and about an extraction."""

from __future__ import annotations

import string
from dataclasses import dataclass

from mmrec_jax.errors import ConfigError

KINDS = ("text", "image", "video", "audio")
POOLINGS = ("mean", "cls", "last")
FRAME_POOLINGS = ("mean", "max")
MAX_FRAMES = 256  # of a video: what they take in memory grows with them
DTYPES = ("float32", "bfloat16", "int8")
COMPUTE_DTYPES = ("float32", "bfloat16")
_BATCHES = {"text": (16, 128), "image": (4, 64), "video": (1, 8), "audio": (1, 16)}  # on CPU, on other devices
MAX_SECONDS = 600.0  # of a recording: what attention over all of it takes grows with the square


@dataclass(frozen=True)
class ModalityConfig:
    """One modality of the items: where its raw media are, and which frozen encoder reads them.

    Attributes:
        kind: "text", "image", "video" or "audio".
        backbone: a local directory, a hub id such as "facebook/dinov2-small", or "package:NAME" for an
            installed Python package that carries a model folder.
        template: for text, the text of an item with catalogue columns in braces: "{title}. {overview}".
        column: for the other kinds, the catalogue column that holds the path relative to the media root, or the
            medium itself as bytes (a Parquet column of binary type, or a struct with a field `bytes`).
        path_template: for the other kinds, the path built from catalogue columns instead: "posters/{item}.jpg".
        layers: indices into the hidden states, 0 being the embedding output; () means 0, 2, 4, ...
        pooling: "cls" takes the class token (with AST the mean of both), "last" the last one of a text (for decoders
            and CLIP), "mean" averages the tokens that are not padding.
        max_tokens: texts are cut after this many tokens, the special ones included.
        max_seconds: recordings are cut after this, or after the encoder's own window where that is shorter.
        frames: of a video, evenly spaced; 0 is as many as a video encoder takes, and 8 for an image encoder.
        frame_pooling: where an image encoder reads the frames of a video, how their pooled vectors become one: their
            "mean", or the largest value ("max") of each feature.
        revision: branch, tag or commit of a hub id; "" is its default branch.
        compute_dtype: "float32" or "bfloat16" of the encoder's parameters and products; the second is for accelerators.
    """

    kind: str = "text"
    backbone: str = "sentence-transformers/all-MiniLM-L6-v2"
    template: str = ""
    column: str = ""
    path_template: str = ""
    layers: tuple[int, ...] = ()
    pooling: str = "mean"
    max_tokens: int = 128
    max_seconds: float = 30.0
    frames: int = 0
    frame_pooling: str = "mean"
    revision: str = ""
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.kind not in KINDS:
            raise ConfigError(f"modality kind {self.kind!r} is unknown: use one of {', '.join(KINDS)}")
        if self.pooling not in POOLINGS:
            raise ConfigError(f"pooling {self.pooling!r} is unknown: use one of {', '.join(POOLINGS)}")
        if self.pooling == "last" and self.kind != "text":
            raise ConfigError(f"pooling 'last' is for text; a modality of kind {self.kind!r} has 'mean' and 'cls'")
        if not self.backbone:
            raise ConfigError("a modality needs a backbone: a local directory, a hub id or package:NAME")
        if self.kind == "text" and not self.template:
            raise ConfigError("a text modality needs `template`, for example '{title}'")
        if self.kind == "text" and (self.column or self.path_template):
            raise ConfigError("a text modality is made from `template`; `column` and `path_template` are for files")
        if self.kind != "text" and bool(self.column) == bool(self.path_template):
            raise ConfigError(f"a modality of kind {self.kind!r} needs exactly one of `column` and `path_template`")
        if self.kind != "text" and self.template:
            raise ConfigError(
                f"`template` is for text; a modality of kind {self.kind!r} has `column` or `path_template`"
            )
        if self.max_tokens < 3:
            raise ConfigError(f"max_tokens is {self.max_tokens}: at least 3 (one token between two special ones)")
        if not 0 < self.max_seconds <= MAX_SECONDS:
            raise ConfigError(f"max_seconds is {self.max_seconds}: it must be above 0 and at most {MAX_SECONDS:g}")
        if not 0 <= self.frames <= MAX_FRAMES:
            raise ConfigError(f"frames is {self.frames}: it must be from 1 to {MAX_FRAMES}, or 0 for the default")
        if self.frame_pooling not in FRAME_POOLINGS:
            raise ConfigError(
                f"frame_pooling {self.frame_pooling!r} is unknown: use one of {', '.join(FRAME_POOLINGS)}"
            )
        if self.kind != "video" and (self.frames or self.frame_pooling != "mean"):
            raise ConfigError(f"`frames` and `frame_pooling` are for video; this modality is of kind {self.kind!r}")
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ConfigError(
                f"compute_dtype {self.compute_dtype!r} is unknown: use one of {', '.join(COMPUTE_DTYPES)}"
            )
        if any(layer < 0 for layer in self.layers) or list(self.layers) != sorted(set(self.layers)):
            raise ConfigError(f"layers {self.layers} must be distinct, ascending and not negative")
        template_columns(self.source)

    @property
    def source(self) -> str:
        """The template of the item's text or of its media path."""
        return self.template or self.path_template or f"{{{self.column}}}"

    @property
    def inputs(self) -> tuple:
        """Equal for modalities whose inputs and backbone are the same."""
        limits = self.max_tokens, self.max_seconds, self.frames
        return self.kind, self.backbone, self.revision, self.compute_dtype, self.source, *limits


@dataclass(frozen=True)
class ExtractionConfig:
    """How hidden states are extracted and kept.

    Attributes:
        dtype: "float32", "bfloat16", or "int8" with one float32 scale a vector.
        text_batch, image_batch, video_batch, audio_batch: items in one call of the encoder, by kind; 0 is few on CPU,
            whose cache they then fit into, and many on other devices. Short texts that share rows of 64 tokens count
            by rows.
        commit_batches: finished work is written after this many batches, of texts after 8 times as many; a killed
            run repeats no more.
        decode_threads: threads that read and decode media ahead of the encoder, in each process that decodes.
        decode_processes: processes that decode; 0 decodes in this one, which is faster unless decoding takes more
            than the cores that the encoder leaves.
        max_pixels: images, and frames of videos, with more pixels than this, as they are or resized for the backbone,
            are skipped as too large (a bound on memory).
        max_video_seconds: videos longer than this are skipped as too long.
        max_failure_share: more broken or missing media than this share of a modality's items is an error.
        process_timeout: where several processes share a catalogue, seconds that one waits for the others while
            nothing goes on.
        progress: whether to show a progress bar.
    """

    dtype: str = "float32"
    text_batch: int = 0
    image_batch: int = 0
    video_batch: int = 0
    audio_batch: int = 0
    commit_batches: int = 16
    decode_threads: int = 2
    decode_processes: int = 0
    max_pixels: int = 100_000_000
    max_video_seconds: float = 3600.0
    max_failure_share: float = 0.05
    process_timeout: int = 600
    progress: bool = True

    def batch(self, kind: str, backend: str) -> int:
        """Items in one call of the encoder on JAX's backend of that name."""
        return getattr(self, f"{kind}_batch") or _BATCHES[kind][backend != "cpu"]

    def block(self, kind: str, backend: str) -> int:
        """Items that are written at once."""
        return self.batch(kind, backend) * self.commit_batches * (8 if kind == "text" else 1)

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"store dtype {self.dtype!r} is unknown: use one of {', '.join(DTYPES)}")
        for kind in KINDS:
            if getattr(self, f"{kind}_batch") < 0:
                raise ConfigError(f"{kind}_batch is {getattr(self, f'{kind}_batch')}: it must be at least 1, or 0")
        for name in (
            "commit_batches",
            "decode_threads",
            "max_pixels",
            "max_video_seconds",
            "process_timeout",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.decode_processes < 0:
            raise ConfigError(f"decode_processes is {self.decode_processes}: it must be 0 (none) or more")
        if not 0 <= self.max_failure_share <= 1:
            raise ConfigError(f"max_failure_share is {self.max_failure_share}: it is a share between 0 and 1")


def template_columns(template: str) -> tuple[list[str], list[str]]:
    """Splits a template into its literal parts (one more than columns) and the columns named in braces.

    Only plain column names are allowed: no attribute access, index, conversion or format specification.

    Raises:
        ConfigError: the template cannot be read, or names no column.
    """
    literals, columns = [""], []
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"template {template!r} cannot be read: {error}") from error
    for literal, column, spec, conversion in parts:
        literals[-1] += literal
        if column is None:
            continue
        if not column or spec or conversion or any(sign in column for sign in ".[]"):
            raise ConfigError(f"template {template!r}: write plain catalogue column names in braces, such as {{title}}")
        columns.append(column)
        literals.append("")
    if not columns:
        raise ConfigError(f"template {template!r} names no catalogue column: write one in braces, such as {{title}}")
    return literals, columns


def evenly_spaced(depth: int, count: int = 7) -> tuple[int, ...]:
    """A list of layers for an encoder of `depth` blocks, as long for encoders of any depth: IISAN-Versa's group
    layer-dropping (arXiv 2411.02992; papers.md 1.0b).

    The embedding output, and the last block with the `count - 2` before it at equal distances: 0, 2, .., 12 of 12
    blocks, and 0, 5, 20, .., 80 of 80.

    Raises:
        ConfigError: the encoder has fewer blocks.
    """
    if not 2 <= count <= depth + 1:
        raise ConfigError(f"evenly_spaced: {count} layers of {depth} blocks; choose 2 to {depth + 1}.")
    distance = (depth - 1) // max(count - 2, 1)
    return (0, *range(depth - (count - 2) * distance, depth + 1, distance))


def resolve_layers(layers: tuple[int, ...], depth: int, where: str) -> tuple[int, ...]:
    """The layers meant by a config for an encoder of `depth` blocks: () is 0, 2, ... up to depth.

    Raises:
        ConfigError: a layer lies beyond the encoder's depth.
    """
    chosen = tuple(layers) or tuple(range(0, depth + 1, 2))
    if max(chosen) > depth:
        raise ConfigError(
            f"{where}: layer {max(chosen)} was asked for, but the backbone has hidden states 0 to {depth}"
        )
    return chosen
