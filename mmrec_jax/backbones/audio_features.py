"""Samples to what an audio encoder takes, as its preprocessor_config.json says."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mmrec_jax.backbones.audio import read_audio
from mmrec_jax.backbones.lengths import padded_length
from mmrec_jax.backbones.medium import MediaError, Medium
from mmrec_jax.backbones.spectrogram import (
    KALDI_HOP,
    KALDI_RATE,
    KALDI_WINDOW,
    kaldi_log_mel,
    whisper_floor,
    whisper_log_mel,
)
from mmrec_jax.errors import BackboneError

if TYPE_CHECKING:
    from mmrec_jax.backbones.family import Sound


@dataclass(frozen=True)
class AudioPreprocessor(abc.ABC):
    """One recording to the encoder's input, and many of them to a batch.

    Attributes:
        rate: samples a second.
        shortest: samples that a recording needs at least.
        longest: samples after which it is cut.
    """

    rate: int
    shortest: int
    longest: int

    @property
    def fingerprint(self) -> dict:
        """What its result depends on, as JSON values."""
        return {"features": type(self).__name__, **asdict(self)}

    @property
    def shape(self) -> tuple[int, ...]:
        """Time and bins of every batch; () where recordings keep their length."""
        return ()

    def read(self, medium: Medium) -> Float[np.ndarray, " time *bin"]:
        """The audio track of a file as the encoder takes it.

        Raises:
            MediaError: as `read_audio`, or the recording is too short.
            ConfigError: PyAV is not installed.
        """
        return self(read_audio(medium, self.rate, self.longest / self.rate))

    def __call__(self, samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " time *bin"]:
        """Features of mono samples at `rate`, float32, without padding.

        Raises:
            MediaError: the recording is too short.
        """
        if len(samples) < self.shortest:
            raise MediaError(
                f"too short: {len(samples)} samples at {self.rate} Hz, at least {self.shortest} are needed"
            )
        return self._features(samples[: self.longest])

    def batch(self, recordings: Sequence[Float[np.ndarray, " time *bin"]], rows: int) -> Sound:
        """Recordings padded at their ends to one length, and to `rows` rows with recordings of length 0."""
        time = self.shape[0] if self.shape else self.padded(max(len(recording) for recording in recordings))
        return self.joined(recordings, rows, time)

    def padded(self, longest: int) -> int:
        """The length that recordings of at most `longest` samples are padded to, where they keep their length."""
        return min(padded_length(longest, self.rate // 4), self.longest)

    def joined(self, recordings: Sequence[Float[np.ndarray, " time *bin"]], rows: int, time: int) -> Sound:
        """Recordings padded at their ends to `time` steps, and to `rows` rows with recordings of length 0."""
        # Recordings are read in processes that need no JAX, which this import brings.
        from mmrec_jax.backbones.family import Sound

        values: Any = np.zeros((rows, time, *self.shape[1:]), np.float32)
        lengths: Any = np.zeros(rows, np.int32)
        for row, recording in enumerate(recordings):
            lengths[row] = len(recording)
            values[row, : len(recording)] = recording
            values[row, len(recording) :] = self._silence(recording)
        return Sound(values, lengths)

    @abc.abstractmethod
    def _features(self, samples: np.ndarray) -> np.ndarray:
        """Features of samples that are neither too few nor too many."""

    def _silence(self, recording: np.ndarray) -> float:
        """The value of padding beside a recording."""
        return 0.0


@dataclass(frozen=True)
class Waveform(AudioPreprocessor):
    """The samples themselves; Wav2Vec2 and HuBERT.

    Attributes:
        normalised: whether a recording is shifted and scaled to mean 0 and variance 1.
    """

    normalised: bool

    def _features(self, samples: np.ndarray) -> np.ndarray:
        samples = samples.astype(np.float32, copy=False)
        return (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7) if self.normalised else samples


@dataclass(frozen=True)
class WhisperLogMel(AudioPreprocessor):
    """Whisper's log-mel spectrogram; silence fills the encoder's window.

    A recording's features are the frames that touch it. The window is what the encoder always gets, so that
    hidden states are the original's, in which the silence takes part.

    Attributes:
        bins: mel bands.
        window: samples of a frame.
        hop: samples from one frame to the next.
        seconds: of the encoder's window.
    """

    bins: int
    window: int
    hop: int
    seconds: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.seconds * self.rate // self.hop, self.bins

    def _features(self, samples: np.ndarray) -> np.ndarray:
        return whisper_log_mel(samples, self.rate, self.bins, self.window, self.hop, self.seconds * self.rate)

    def _silence(self, recording: np.ndarray) -> float:
        return whisper_floor(recording)


@dataclass(frozen=True)
class KaldiLogMel(AudioPreprocessor):
    """Kaldi's log filter bank energies, normalised by the training set's mean and deviation; AST.

    Attributes:
        bins: mel bands.
        frames: that the encoder takes; shorter recordings are filled up with zeros before normalisation.
        mean: subtracted.
        deviation: twice this is divided by, so that most values have a deviation of 0.5.
    """

    bins: int
    frames: int
    mean: float
    deviation: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.frames, self.bins

    def _features(self, samples: np.ndarray) -> np.ndarray:
        return (kaldi_log_mel(samples, self.bins) - np.float32(self.mean)) / np.float32(2 * self.deviation)

    def _silence(self, recording: np.ndarray) -> float:
        return -self.mean / (2 * self.deviation)


FILES = ("preprocessor_config.json", "processor_config.json")
"""Where transformers keeps a feature extractor; the last one holds a tokenizer's settings too."""
EXTRACTORS = {
    # model_type -> the feature extractor that transformers pairs with it; older files do not name it
    "audio-spectrogram-transformer": "ASTFeatureExtractor",
    "hubert": "Wav2Vec2FeatureExtractor",
    "wav2vec2": "Wav2Vec2FeatureExtractor",
    "whisper": "WhisperFeatureExtractor",
}


def read_audio_preprocessor(directory: Path, max_seconds: float) -> AudioPreprocessor:
    """The preprocessing that a backbone's preprocessor_config.json asks for.

    Args:
        directory: of the backbone; config.json says how many samples a waveform encoder needs at least.
        max_seconds: recordings are cut after this, or after the encoder's window where that is shorter.

    Raises:
        BackboneError: the file is absent, of an unknown feature extractor, or has settings that are not usable.
    """
    path = next((directory / name for name in FILES if (directory / name).is_file()), None)
    if path is None:
        raise BackboneError(f"{directory} has no {FILES[0]}: copy it from the model's hub repository")
    settings, config = _read_object(path), _read_object(directory / "config.json")
    if path.name == FILES[-1]:
        if not isinstance(settings.get("feature_extractor"), dict):
            raise BackboneError(f"{path} has no feature_extractor")
        settings = settings["feature_extractor"]
    name = settings.get("feature_extractor_type") or EXTRACTORS.get(str(config.get("model_type")))
    if name not in EXTRACTORS.values():
        known = ", ".join(sorted(set(EXTRACTORS.values())))
        raise BackboneError(f"{path}: feature extractor {name!r} is unknown; known are {known}")
    try:
        rate = _whole(settings, "sampling_rate", 16_000)
        longest = max(1, round(rate * max_seconds))
        if name == "WhisperFeatureExtractor":
            return _whisper(settings, rate, longest)
        if name == "ASTFeatureExtractor":
            return _kaldi(settings, rate, longest)
        if _whole(settings, "feature_size", 1) != 1:
            raise ValueError("feature_size is not 1")
        needed = receptive_field(config.get("conv_kernel", CONV_KERNEL), config.get("conv_stride", CONV_STRIDE))
        return Waveform(rate, needed, longest, bool(settings.get("do_normalize", True)))
    except (TypeError, ValueError) as error:
        raise BackboneError(f"{path}: {error}") from error


def longest_of(made: Mapping[str, Any], max_seconds: float) -> int:
    """Samples after which recordings would be cut by a preprocessing if its `max_seconds` were another.

    Args:
        made: fingerprint of the preprocessing.
        max_seconds: as in `read_audio_preprocessor`.
    """
    longest = max(1, round(made["rate"] * max_seconds))
    if made["features"] == WhisperLogMel.__name__:
        return min(longest, _whisper_window(made["seconds"], made["rate"]))
    if made["features"] == KaldiLogMel.__name__:
        return min(longest, _kaldi_window(made["frames"]))
    return longest


def _whisper_window(seconds: int, rate: int) -> int:
    return seconds * rate


def _kaldi_window(frames: int) -> int:
    return (frames - 1) * KALDI_HOP + KALDI_WINDOW


CONV_KERNEL, CONV_STRIDE = (10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)
"""The convolutions of Wav2Vec2 and HuBERT where config.json does not say: one state each 20 ms, of 25 ms."""


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one state of a stack of convolutions sees."""
    field = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        field = (field - 1) * stride + kernel
    return field


def _whisper(settings: dict, rate: int, longest: int) -> WhisperLogMel:
    seconds = _whole(settings, "chunk_length", 30)
    for key in ("dither", "padding_value"):
        if settings.get(key, 0.0) != 0:
            raise ValueError(f"{key} is {settings[key]!r}, but only 0 is supported")
    return WhisperLogMel(
        rate,
        shortest=1,
        longest=min(longest, _whisper_window(seconds, rate)),
        bins=_whole(settings, "feature_size", 80),
        window=_whole(settings, "n_fft", 400),
        hop=_whole(settings, "hop_length", 160),
        seconds=seconds,
    )


def _kaldi(settings: dict, rate: int, longest: int) -> KaldiLogMel:
    if rate != KALDI_RATE:
        raise ValueError(f"sampling_rate is {rate}, but only {KALDI_RATE} is supported")
    frames = _whole(settings, "max_length", 1024)
    normalised = settings.get("do_normalize", True)
    mean = float(settings.get("mean", -4.2677393)) if normalised else 0.0
    deviation = float(settings.get("std", 4.5689974)) if normalised else 0.5
    if not deviation:
        raise ValueError("std is 0")
    return KaldiLogMel(
        rate,
        shortest=KALDI_WINDOW,
        longest=min(longest, _kaldi_window(frames)),
        bins=_whole(settings, "num_mel_bins", 128),
        frames=frames,
        mean=mean,
        deviation=deviation,
    )


def _whole(settings: dict, key: str, default: int) -> int:
    value = settings.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} is {value!r}, which is not a positive whole number")
    return value


def _read_object(path: Path) -> dict:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BackboneError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path} is not a JSON object")
    return content
