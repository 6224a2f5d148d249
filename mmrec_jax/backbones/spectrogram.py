"""Log-mel spectrograms, as Whisper and as Kaldi make them.

Whisper: arXiv 2212.04356, section 2.2. Kaldi: its `compute-fbank-feats`, with the settings AST was trained with
(arXiv 2104.01778, section 2.1). Both take samples whose full scale is -1 to 1.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float

KALDI_RATE, KALDI_WINDOW, KALDI_HOP, KALDI_FFT = 16_000, 400, 160, 512
KALDI_LOWEST = 20.0  # Hz
KALDI_PREEMPHASIS = 0.97
WHISPER_HIGHEST = 8000.0  # Hz, whatever the rate
WHISPER_SILENCE = -10.0  # log10 of the smallest power that counts
WHISPER_RANGE = 8.0  # decades of power below the loudest


def whisper_log_mel(
    samples: Float[np.ndarray, " sample"], rate: int, bins: int, window: int, hop: int, length: int
) -> Float[np.ndarray, "frame bin"]:
    """Whisper's log-mel of a recording that silence is thought to follow up to `length` samples.

    Args:
        samples: cut to `length`.
        rate: samples a second.
        bins: mel bands between 0 and 8000 Hz.
        window: samples of a frame, and of its Fourier transform.
        hop: samples from one frame to the next.
        length: samples with the silence; there are length / hop frames in all.

    Returns:
        Only those frames, from the first, that touch the recording; all that follow are equal to `whisper_floor`.
    """
    half = window // 2
    heard = min(len(samples), length)
    # The ends are mirrored as they are after the silence has been added.
    whole = np.zeros(max(length, half + 1), np.float64)
    whole[:heard] = samples[:heard]
    padded = np.pad(whole, half, mode="reflect")
    frames = min(length // hop, -(-(heard + half) // hop))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    power = power_spectrum(frame(padded, window, hop)[:frames] * hann, window)
    mel = power @ slaney_filters(window // 2 + 1, bins, rate)
    log = np.log10(np.maximum(mel, 10.0**WHISPER_SILENCE))
    return ((np.maximum(log, log.max(initial=WHISPER_SILENCE) - WHISPER_RANGE) + 4) / 4).astype(np.float32)


def whisper_floor(log_mel: Float[np.ndarray, "frame bin"]) -> float:
    """What silence comes to beside a recording: Whisper's scale reaches only so far below its loudest band."""
    return max((WHISPER_SILENCE + 4) / 4, float(log_mel.max()) - WHISPER_RANGE / 4)


def kaldi_log_mel(samples: Float[np.ndarray, " sample"], bins: int) -> Float[np.ndarray, "frame bin"]:
    """Kaldi's log filter bank energies at 16 kHz: every whole frame of 25 ms, one each 10 ms."""
    frames = frame(samples.astype(np.float64), KALDI_WINDOW, KALDI_HOP)
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(KALDI_WINDOW) / (KALDI_WINDOW - 1))
    power = power_spectrum((frames - KALDI_PREEMPHASIS * before) * hann, KALDI_FFT)
    mel = power @ kaldi_filters(KALDI_FFT // 2 + 1, bins)
    return np.log(np.maximum(mel, np.finfo(np.float32).eps)).astype(np.float32)


def frame(samples: Float[np.ndarray, " sample"], window: int, hop: int) -> Float[np.ndarray, "frame window"]:
    """A view of every whole window, one each `hop` samples."""
    if len(samples) < window:
        return np.zeros((0, window), samples.dtype)
    return np.lib.stride_tricks.sliding_window_view(samples, window)[::hop]


def power_spectrum(frames: Float[np.ndarray, "frame window"], size: int) -> Float[np.ndarray, "frame frequency"]:
    """Squared magnitudes of each frame's Fourier transform of `size` points, from 0 to half the rate."""
    transformed = np.fft.rfft(frames, size, axis=1)
    return transformed.real**2 + transformed.imag**2


@cache
def slaney_filters(frequencies: int, bins: int, rate: int) -> Float[np.ndarray, "frequency bin"]:
    """Triangles between 0 and 8000 Hz on Slaney's scale (linear below 1 kHz), each of area 2 / its width."""
    edges = slaney_hertz(np.linspace(0, slaney_mel(WHISPER_HIGHEST), bins + 2))
    filters = triangles(np.linspace(0, rate // 2, frequencies), edges)
    return filters * (2 / (edges[2:] - edges[:-2]))


@cache
def kaldi_filters(frequencies: int, bins: int) -> Float[np.ndarray, "frequency bin"]:
    """Triangles, straight on the mel scale itself, between 20 Hz and half the rate."""
    points = kaldi_mel(np.arange(frequencies) * (KALDI_RATE / KALDI_FFT))
    return triangles(points, np.linspace(kaldi_mel(KALDI_LOWEST), kaldi_mel(KALDI_RATE / 2), bins + 2))


def triangles(
    points: Float[np.ndarray, " frequency"], edges: Float[np.ndarray, " edge"]
) -> Float[np.ndarray, "frequency bin"]:
    """Filter b rises from 0 at edge b to 1 at edge b + 1 and falls to 0 at edge b + 2."""
    rising = (points[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - points[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def kaldi_mel(hertz: Float[np.ndarray, "*any"] | float) -> Float[np.ndarray, "*any"]:
    """Mels of O'Shaughnessy, with the natural logarithm."""
    return 1127 * np.log1p(np.asarray(hertz) / 700)


def slaney_mel(hertz: float) -> float:
    """Slaney's scale: 15 mels up to 1 kHz, and 27 for each factor of 6.4 above."""
    return 15 * hertz / 1000 if hertz < 1000 else 15 + 27 * np.log(hertz / 1000) / np.log(6.4)


def slaney_hertz(mels: Float[np.ndarray, " edge"]) -> Float[np.ndarray, " edge"]:
    """The inverse of `slaney_mel`."""
    return np.where(mels < 15, mels * (1000 / 15), 1000 * 6.4 ** ((mels - 15) / 27))
